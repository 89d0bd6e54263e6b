"""An invertible matrix times the channels of every pixel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, autocasts, check_device, check_float, check_tensor
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._channels import as_given, as_images, check_channels, check_of_channels, check_vector, needs_graph
from flowkern.ops._derivatives import Function, plain_backward, wants_plain
from flowkern.ops._rows import namespace

_PARTS = ("lower", "upper", "log_scale", "order", "sign")


def invertible_conv1x1(x: Tensor, *matrix: Tensor, dim: int = -2, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""z = W x for the channels of every pixel, and log_det = pixels log|det W|.

    In the LU form W = P L (U + diag(sign exp(log_scale))), with L unit lower and U strictly upper triangular, the
    determinant costs a sum, and the inverse two triangular systems a pixel; of a plain W both take a factorisation. The
    inverse of W is never formed. Products keep their precision under autocast: one of lower precision could not be undone.

    Args:
        x: images (..., channels, pixels), of any strides.
        matrix: W (channels, channels); or lower and upper (channels, channels), of which only the parts below and above the
            diagonal are read, log_scale (channels,), and two constants: order (channels,), int64, the row of L U that is
            that of W, and sign (channels,).
        dim: the dimension of x that holds the channels; those after it are pixels, and vectors, -1, have one.
        inverse: evaluate the inverse map and its log-determinant.

    Returns:
        z like x and log_det with the batch's shape. An image that is not finite has a log_det that is not; a singular W has
        minus infinity.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.
        RuntimeError: for the inverse of a plain W that is singular; not while compiling.

    Example:
        >>> import torch
        >>> swap, x = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> invertible_conv1x1(x, swap)
        (tensor([[[3., 4.],
                 [1., 2.]]]), tensor([0.]))

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018), section 3.2, equation 10.
    """
    check_float("x", x)
    dim = check_channels(x, _check_matrix(x, matrix), dim)
    with _exact(x):
        kernels = kernels_for(x, "invertible_conv1x1")
        if kernels.plain:
            try:
                return reference.invertible_conv1x1(x, *matrix, dim=dim, inverse=inverse)
            except torch.linalg.LinAlgError:
                raise _singular(matrix[0]) from None
        if x.dtype in HALF:
            wide = (t.float() if t.is_floating_point() else t for t in (x, *matrix))
            z, log_det = invertible_conv1x1(*wide, dim=dim, inverse=inverse)
            return z.to(x.dtype), log_det.to(x.dtype)
        given = [t.contiguous() for t in matrix]
        if len(given) == 1:
            return _plain(kernels, x, given[0], dim, inverse)
        run = InvertibleConv1x1Function.record if needs_graph(x, *matrix) else _run
        return run(kernels, dim, inverse, x, *given)


def _check_matrix(x: Tensor, matrix: tuple[Tensor, ...]) -> int:
    """Raises if it is none, and returns the number of channels."""
    if len(matrix) == 1:
        check_tensor("weight", matrix[0])
        n = matrix[0].shape[-1] if matrix[0].dim() else 0
        if n == 0:
            raise ValueError(f"weight: expected shape (channels, channels), got {tuple(matrix[0].shape)}")
        check_of_channels("weight", matrix[0], (n, n), x)
        return n
    if len(matrix) != len(_PARTS):
        raise ValueError(f"matrix: expected a weight, or {', '.join(_PARTS)}, got {len(matrix)} tensors")
    lower, upper, log_scale, order, sign = matrix
    n = check_vector("log_scale", log_scale)
    for name, t, shape in (
        ("lower", lower, (n, n)),
        ("upper", upper, (n, n)),
        ("log_scale", log_scale, (n,)),
        ("sign", sign, (n,)),
    ):
        check_of_channels(name, t, shape, x)
    check_tensor("order", order)
    if order.dtype is not torch.int64 or order.shape != (n,):
        raise ValueError(f"order: expected an int64 tensor ({n},), got {order.dtype} {tuple(order.shape)}")
    check_device("order", order, x)
    return n


def _exact(x: Tensor) -> AbstractContextManager[Any]:
    """Products keep their precision."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def _run(kernels: Kernels, dim: int, inverse: bool, x: Tensor, *matrix: Tensor | None) -> tuple[Tensor, Tensor]:
    return as_given(namespace(kernels).invertible_conv1x1(as_images(x, dim), *matrix, inverse), x, dim)


def _gradients(
    kernels: Kernels, dim: int, inverse: bool, g_z: Tensor, g_log_det: Tensor, x: Tensor, *matrix: Tensor | None
) -> tuple[Tensor, ...]:
    """Cotangents of x and of the matrices."""
    images = (as_images(g_z, dim), g_log_det.reshape(-1), as_images(x, dim))
    with _exact(x):
        g_x, *found = namespace(kernels).invertible_conv1x1_backward(*images, *matrix, inverse)
    return g_x.view(x.shape), *found


def _plain(kernels: Kernels, x: Tensor, weight: Tensor, dim: int, inverse: bool) -> tuple[Tensor, Tensor]:
    """A determinant by torch, whose gradient torch knows, and the factors of the inverse; the rest by the kernels."""
    of_a_pixel = torch.linalg.slogdet(weight).logabsdet
    factors = _factors(weight.detach()) if inverse else None
    if needs_graph(x, weight):
        z, finite = PlainFunction.record(kernels, x, weight, dim, factors)
    else:
        z, finite = _mixed(kernels, x, weight, dim, factors)
    pixels = x.shape[dim:][1:].numel()
    return z, (-pixels if inverse else pixels) * of_a_pixel + finite


def _factors(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L, U and the order of the rows of L U that are those of W."""
    permutation, lower, upper = torch.linalg.lu(weight)
    if not torch.compiler.is_compiling() and not bool((upper.diagonal() != 0).all()):
        raise _singular(weight)
    return lower.contiguous(), upper.contiguous(), permutation.argmax(1)


def _singular(weight: Tensor) -> RuntimeError:
    return RuntimeError(f"weight: expected an invertible matrix, got {weight.tolist()}")


def _mixed(
    kernels: Kernels, x: Tensor, weight: Tensor, dim: int, factors: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The product, or the inverse where there are factors; and for each image zero, or NaN."""
    if factors is None:
        return _run(kernels, dim, False, x, weight, None, None, None, None)
    lower, upper, order = factors
    return _run(kernels, dim, True, x, lower, upper, None, order, None)


class PlainFunction(Function):
    """z alone of a plain W: what the determinant gives is torch's. Second derivatives through the oracle."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: Tensor, weight: Tensor, dim: int, factors: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        z, finite = _mixed(kernels, x, weight, dim, factors)
        ctx.kernels, ctx.dim, ctx.inverse = kernels, dim, factors is not None
        ctx.save_for_backward(z if ctx.inverse else x, weight, *(factors or ()))
        ctx.mark_non_differentiable(finite)
        return z, finite

    @staticmethod
    def backward(ctx: Any, g_z: Tensor, _: Any) -> Any:
        x, weight, *factors = ctx.saved_tensors
        if wants_plain():
            with torch.enable_grad():
                x = _product(x, weight, ctx.dim, False) if ctx.inverse else x
            oracle = partial(_product, dim=ctx.dim, inverse=ctx.inverse)
            return None, *plain_backward(oracle, (x, weight), ctx.needs_input_grad[1:3], (g_z,)), None, None
        lower, upper, order = factors or (weight, None, None)
        none = g_z.new_zeros(1)  # of a log-determinant that is not the kernels'
        matrix = lower, upper, None, order, None
        g_x, g_weight, *_ = _gradients(ctx.kernels, ctx.dim, ctx.inverse, g_z, none, x, *matrix)
        return None, g_x, g_weight, None, None


def _product(x: Tensor, weight: Tensor, dim: int, inverse: bool) -> Tensor:
    return reference.invertible_conv1x1(x, weight, dim=dim, inverse=inverse)[0]


class InvertibleConv1x1Function(Function):
    """The LU form: forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, dim: int, inverse: bool, x: Tensor, *matrix: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = _run(kernels, dim, inverse, x, *matrix)
        ctx.kernels, ctx.dim, ctx.inverse = kernels, dim, inverse
        ctx.save_for_backward(z if inverse else x, *matrix)
        return z, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *matrix = ctx.saved_tensors
        if wants_plain():
            with torch.enable_grad():
                x = reference.invertible_conv1x1(x, *matrix, dim=ctx.dim)[0] if ctx.inverse else x
            oracle = partial(reference.invertible_conv1x1, dim=ctx.dim, inverse=ctx.inverse)
            return None, None, None, *plain_backward(oracle, (x, *matrix), ctx.needs_input_grad[3:], grads)
        return None, None, None, *_gradients(ctx.kernels, ctx.dim, ctx.inverse, *grads, x, *matrix), None, None
