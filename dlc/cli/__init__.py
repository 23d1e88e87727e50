"""The command line, one file a verb; `main` collects them."""
