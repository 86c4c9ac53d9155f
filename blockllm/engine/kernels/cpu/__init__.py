"""Kernels of the CPU: C++ sources, how they are built and called."""
