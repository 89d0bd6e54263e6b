"""Invertible 1x1 convolutions in float64, where the oracle's long products are no judge of the kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accuracy import LONG_DOUBLES, Pool
from cases.invertible_conv1x1 import CASE, VARIATIONS, draw

import flowkern as fk


def inverted(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a matrix of long doubles, by Newton's method."""
    found = np.linalg.inv(matrix.astype(float)).astype(np.longdouble)
    for _ in range(2):
        found = found @ (2 * np.eye(len(matrix)) - matrix @ found)
    return found


def exact(inverse: bool, given: dict[str, np.ndarray], g_z: np.ndarray, g_log_det: np.ndarray) -> dict[str, np.ndarray]:
    """z, and the gradients of sum(g_z z) + sum(g_log_det log_det), in long doubles."""
    x = given["x"]
    if "lower" in given:
        lower = np.tril(given["lower"], -1) + np.eye(x.shape[1])
        upper = np.triu(given["upper"], 1) + np.diag(given["sign"] * np.exp(given["log_scale"]))
        weight = (lower @ upper)[given["order"]]
    else:
        weight = given["weight"]
    inverted_weight = inverted(weight)
    matrix = inverted_weight if inverse else weight
    z, g_x = matrix @ x, matrix.T @ g_z
    slope = g_log_det.sum() * x.shape[2] * inverted_weight.T  # of log|det weight|
    products = -np.einsum("bip,bjp->ij", g_x, z) - slope if inverse else np.einsum("bip,bjp->ij", g_z, x) + slope
    found = {"z": z, "x": g_x}
    if "weight" in given:
        return {**found, "weight": products}
    back = products[np.argsort(given["order"])]
    g_upper = lower.T @ back
    return {
        **found,
        "lower": np.tril(back @ upper.T, -1),
        "upper": np.triu(g_upper, 1),
        "log_scale": np.diag(g_upper) * np.diag(upper),
    }


@LONG_DOUBLES
@pytest.mark.parametrize("name", [name for name in VARIATIONS if "no pixels" not in name])
def test_float64_is_as_exact_as_its_oracle(name: str) -> None:
    """The rule of accuracy with long doubles for the judge."""
    pools: dict[str, Pool] = {}
    for seed in range(4):
        example = draw(60, seed, **VARIATIONS[name])
        generator = torch.Generator().manual_seed(seed)
        g_z = torch.randn(example.rows["x"].shape, generator=generator, dtype=torch.float64)
        g_log_det = torch.randn(len(g_z), generator=generator, dtype=torch.float64)
        leaves = example.leaves(torch.float64)
        arguments = example.arguments(leaves)
        tensors = {k: t.detach() for k, t in arguments.items() if isinstance(t, torch.Tensor)}
        long = {k: t.double().numpy().astype(np.longdouble if t.is_floating_point() else int) for k, t in tensors.items()}
        judge = exact(VARIATIONS[name]["inverse"], long, g_z.numpy().astype(np.longdouble), g_log_det.numpy())
        found = {}
        for backend in ("native", "reference"):
            with fk.backend(backend):
                z, log_det = CASE.operator(**arguments)
            grads = torch.autograd.grad((z, log_det), list(leaves.values()), (g_z, g_log_det))
            found[backend] = {"z": z.detach(), **dict(zip(leaves, grads, strict=True))}
        for output, value in judge.items():
            pools.setdefault(output, Pool()).add_long(found["native"][output], found["reference"][output], value)
    for output, pool in pools.items():
        pool.check(output, torch.float64, oracles=torch.float64)
