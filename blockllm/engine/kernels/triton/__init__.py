"""GPU kernels written in Triton, one file each; every launcher has a plain twin in torch.

Its files import triton, which is absent on CPU machines: others import them only inside
functions that `kernels/gpu.py` has found usable (`pool.py` is plain torch). The same kernels run on
the CPU under Triton's interpreter, which is how they are tested there.
"""
