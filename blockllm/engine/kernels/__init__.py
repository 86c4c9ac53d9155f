"""Compute kernels behind small functions, each with a plain twin it is tested against."""
