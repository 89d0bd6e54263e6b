"""Facts about tensors, and how to make ones that are kept."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def outside_modes() -> Iterator[None]:
    """For what is made once and kept: ordinary tensors, though the call that makes it is traced with tensors without values,
    recorded, under a transform of torch.func, which wraps all that is made, or in inference mode, whose tensors no gradient
    may meet later.
    """
    with (
        torch._C.DisableTorchFunction(),
        torch.inference_mode(False),
        torch.no_grad(),
        _disable_current_modes(),
        temporarily_clear_interpreter_stack(),
    ):
        of_jit: Any = torch._C
        state = of_jit._get_tracing_state()  # of torch.jit.trace
        if state is None:
            yield
            return
        of_jit._set_tracing_state(None)
        try:
            yield
        finally:
            of_jit._set_tracing_state(state)


def version(t: Tensor) -> int:
    """Counts the changes of a tensor in place; inference tensors do not count theirs."""
    return 0 if t.is_inference() else t._version


def content(t: Tensor) -> bytes:
    """The bytes of a tensor on the CPU, without NumPy."""
    t = t.contiguous()
    return ctypes.string_at(t.data_ptr(), t.numel() * t.element_size())
