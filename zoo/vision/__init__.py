"""The embedded vision model: a small residual CNN for Fashion-MNIST."""
