"""The reference target: the smallest example of a target, and the oracle that all others are held to.

A target is a folder like this one. `target.py` is the compiler's half: a `Target` with a name, its own passes (none
here) and `build`, which turns the last IR into members of a package; here that is the graph as JSON and its constants.
`runtime.py` is the half that runs: ``load(package, threads)`` reads those members back and returns an `Executable`;
here it interprets the graph in numpy, operator by operator, by the meanings that `dlc.ir.ops` gives them.
pyproject.toml names the class under the entry-point group ``dlc.targets``; so does a target in another distribution.

It is slow and obvious on purpose. Integers must come out of every other target exactly as they do here, and floats
within stated bounds.
"""
