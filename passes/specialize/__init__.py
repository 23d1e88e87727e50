"""Passes for graphs whose structure is dynamic: loops, branches, experts."""
