"""Targets: what the compiler can compile for, one folder each. `base` has the interface."""
