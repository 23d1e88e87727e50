"""The IR: operators on Relax, their meaning, the rules, the interpreter."""
