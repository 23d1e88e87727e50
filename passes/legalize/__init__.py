"""Passes that say the same in operators that a target has."""
