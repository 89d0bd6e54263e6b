"""Triton kernels, one file per operator; installed as flowkern.kernels.

``launch`` modules of other packages import these files lazily: nothing here is loaded where Triton is missing.
"""
