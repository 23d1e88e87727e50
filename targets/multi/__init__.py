"""The multi-device target: a model cut into stages that run in processes of their own."""
