"""The VTA target: a simulated tensor accelerator with its own instruction set."""
