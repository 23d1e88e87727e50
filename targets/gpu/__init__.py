"""The GPU target: OpenCL C for any OpenCL device, CUDA C for nvcc, from the same scheduled kernels."""
