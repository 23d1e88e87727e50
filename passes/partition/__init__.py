"""Passes that decide what runs together, and where."""
