"""Frontends: other formats into the IR."""
