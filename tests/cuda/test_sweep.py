"""The CUDA sweep in every shape that a launch can have, compiled for the host where there is no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import DEVICE, Pool
from host_run import Host
from networks import network, run

import flowkern as fk
from flowkern.cuda import launch

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="shapes are chosen by pretending to be another GPU")

# The GPU that is pretended, the rows of the batch, and the shape that they lead to.
SHAPES: dict[str, tuple[dict[str, Any], int, str]] = {
    "one row": ({"multiprocessors": 5}, 5, "r1"),
    "sixteen rows": ({"multiprocessors": 3}, 40, "r16"),
    "thirty-two rows": ({"multiprocessors": 2}, 40, "r32"),
    "rows in memory": ({"multiprocessors": 1}, 40, "s32"),
    "a cluster per row": ({"multiprocessors": 24}, 3, "r1 x8"),
    "blocks that meet at a counter": ({"multiprocessors": 24, "clusters": False}, 3, "r1 x8"),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "panels in segments": {"features": 40, "hidden": (150, 130)},
    "wide levels": {"features": 4, "hidden": (200, 180)},
    "residual, gates, addends": {
        "features": 12, "hidden": (90, 90, 90), "residual": True, "gates": (1,), "addends": (0, 3), "activation": "silu",
    },
    "graph": {"features": 30, "hidden": (120, 100), "masks": "dag", "activation": "elu"},
    "small": {"features": 6, "hidden": (40, 36), "skip": True, "addends": (0,), "gates": (1,)},
    "skip": {"features": 30, "hidden": (60, 50), "skip": True},
}  # fmt: skip


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def pretended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Host, int, str]:
    machine, rows, shape = request.param
    if "x8" in shape:
        monkeypatch.setattr(launch, "_GROUPED_BYTES", 0)
    if shape == "s32":  # real ones begin where a tile of sixteen rows does not fit
        monkeypatch.setattr(launch, "shape_of", lambda *_: launch.Shape(32, spill=True))
    return Host(**machine), rows, shape


CASES = [
    pytest.param(structure, dtype, id=f"{name}-{dtype}")
    for name, structure in NETWORKS.items()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if dtype == torch.float32
    or name in ("small", "residual, gates, addends")
    or (dtype == torch.bfloat16 and name == "wide levels")
]


@pytest.mark.parametrize(("structure", "dtype"), CASES)
def test_every_shape_agrees_with_the_oracle(
    pretended: tuple[Host, int, str], structure: dict[str, Any], dtype: torch.dtype
) -> None:
    host, rows, shape = pretended
    net = network(**{"activation": "tanh", "gain": 0.5, **structure})
    net.weights, net.biases = ([t.to(dtype).double() for t in part] for part in (net.weights, net.biases))
    x = torch.randn(rows, net.plan.features).to(dtype).double()
    added = [(0.5 * torch.randn(rows, w)).to(dtype).double() for w in net.plan.addend_widths]
    kernel = run("autoregressive_inverse", net, x, dtype, "cuda", addends=added, host=host)
    low = torch.float32 if dtype == torch.float64 else dtype
    oracle = run("autoregressive_inverse", net, x, low, "reference", addends=added)
    exact = run("autoregressive_inverse", net, x, torch.float64, "reference", addends=added)
    expected = {"r32": "r16"}.get(shape, shape) if dtype == torch.float64 else shape
    sweeps = [name for name in host.launched if not name.startswith("pack")]
    assert [name.split("_", 3)[-1] for name in sweeps if not name.endswith(f"_{expected}")] == []
    assert len(sweeps) == 2
    for name, value in exact.items():
        pool = Pool()
        pool.add(kernel[name], oracle[name], value)
        scale = torch.finfo(dtype).eps / torch.finfo(low).eps
        # Too few rows for the rule itself, which tests/ops checks: twice as much.
        bound = 4 * pool.oracle * scale + 8 * torch.finfo(dtype).eps * pool.largest
        assert pool.kernel <= bound, f"{name}: error {pool.kernel:.3g}, bound {bound:.3g}"


@pytest.mark.parametrize("structure", NETWORKS.values(), ids=NETWORKS)
def test_tf32_multiplies_in_tf32(
    pretended: tuple[Host, int, str], structure: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, rows, shape = pretended
    monkeypatch.setattr(fk.backends, "product_precision", lambda: "tf32")
    net = network(**{"activation": "tanh", "gain": 0.5, **structure})
    x = torch.randn(rows, net.plan.features, dtype=torch.float64)
    added = [0.5 * torch.randn(rows, w, dtype=torch.float64) for w in net.plan.addend_widths]
    kernel = run("autoregressive_inverse", net, x, torch.float32, "cuda", addends=added, host=host)
    exact = run("autoregressive_inverse", net, x, torch.float64, "reference", addends=added)
    assert all(("tf32" in name) == (shape[1:] != "1" and "x8" not in shape) for name in host.launched if "inverse" in name)
    for name, value in exact.items():
        error = (kernel[name] - value).norm() / value.norm()
        assert error < 1e-3, name
    assert (kernel["value"] - exact["value"]).abs().max() > (1e-6 if "tf32" in host.launched[1] else 0)


def test_opcheck() -> None:
    net = network(4, (8, 6), addends=(0,), gates=(1,), activation="tanh")
    plan, ops = net.plan, torch.ops.flowkern_cuda
    x, addends = torch.randn(5, 4), [torch.randn(5, 8), torch.randn(5, 6)]
    parts = [w.float() for w in net.weights], [b.float() for b in net.biases], addends
    numbers, checks = ("affine", (1, 1), ()), ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for keep in (True, False):
        torch.library.opcheck(ops.autoregressive_inverse, (x, *parts, plan.key, "ieee", *numbers, keep), test_utils=checks)
    *_, state = ops.autoregressive_inverse(x, *parts, plan.key, "ieee", *numbers, True)
    for parameters in (True, False):
        arguments = (torch.randn(5, 4), torch.randn(5), x, *parts, state, plan.key, "ieee", *numbers, parameters)
        torch.library.opcheck(ops.autoregressive_inverse_backward, arguments, test_utils=checks)


def test_a_tile_that_fits_nowhere_is_named() -> None:
    net = network(4, (8, 6))
    with pytest.raises(RuntimeError, match=r"a tile of AutoregressivePlan\(.*\) does not fit into 100 bytes of shared memory"):
        run("autoregressive_inverse", net, torch.randn(3, 4), torch.float32, "cuda", host=Host(shared_bytes=100))
