"""Triton kernels, one file per operator; installed as flowkern.kernels.

flowkern/bindings imports these files at the first call: nothing here is loaded where Triton is missing.
"""
