"""Kernel generators of the CPU target."""
