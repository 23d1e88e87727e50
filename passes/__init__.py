"""Passes: IR to IR, one a file."""
