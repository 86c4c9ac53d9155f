"""Measurements: workloads, kernels against their limits, where the time goes."""
