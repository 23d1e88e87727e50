"""Passes that fit work to the memory hierarchy: layouts, halos, tile sizes."""
