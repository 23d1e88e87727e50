"""What runs a package: the session, and what it shares with the package's reader. Imports neither TVM nor onnx."""
