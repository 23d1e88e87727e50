"""Kernel generators of the GPU target, one file a family, over the evaluator of region bodies."""
