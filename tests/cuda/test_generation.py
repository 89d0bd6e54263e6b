"""WaveNet's sampling loop in CUDA, in every way in which a network is cut, compiled for the host where there is no GPU."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from accuracy import DEVICE, Pool
from host_run import Host
from wavenets import call, cast, generate

from flowkern.cuda import wavenet_generate as cuda
from flowkern.ops import WaveNetState

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="launches are chosen by pretending to be another GPU")

# The GPU that is pretended, the rows of the batch, and the launch that they lead to in float64.
LAUNCHES: dict[str, tuple[dict[str, Any], int, str]] = {
    "one block": ({"multiprocessors": 1}, 1, "r1"),
    "one block that reads most of its weights from memory": ({"multiprocessors": 1, "shared_bytes": 3072}, 1, "r1"),
    "one block, eight rows": ({"multiprocessors": 1}, 3, "r8"),
    "a chain": ({"multiprocessors": 5, "shared_bytes": 4096}, 2, "r1 x5"),
    "chains": ({"multiprocessors": 7}, 2, "r1 x6"),
    "chains, several tiles": ({"multiprocessors": 6}, 5, "r1 x6"),
    "a chain, eight rows, two tiles": ({"multiprocessors": 3}, 9, "r8 x3"),
}
EACH_LAUNCH = pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
NETWORKS: dict[str, dict[str, Any]] = {
    "classes": {},
    "one tap": {"taps": 1},
    "three taps, a condition, biases by row": {"taps": 3, "channels": 4, "own_biases": True},
    "numbers": {"output": "logistics"},
    "levels": {"output": "logistics", "levels": 65536, "log_scale_min": -3.0, "bound": 0.9},
    "gaussians": {"output": "gaussians", "channels": 1, "log_scale_min": -3.0, "bound": 2.0},
}
EACH_NETWORK = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


@EACH_LAUNCH
@EACH_NETWORK
def test_every_launch_draws_what_the_oracle_draws(launch: Any, network: dict[str, Any]) -> None:
    machine, rows, expected = launch
    host, arguments = Host(**machine), call(rows, 14, **network)
    drawn, after = generate(arguments, "cuda", host)
    exact, state = generate(arguments, "reference")
    assert host.launched == [f"wavenet_generate_f64_{expected}"]
    if network.get("output", "categorical") == "categorical":
        assert torch.equal(drawn, exact)
        assert torch.equal(after.previous, state.previous)
    else:
        torch.testing.assert_close(drawn, exact, rtol=0, atol=1e-12)
        torch.testing.assert_close(after.previous, state.previous, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.queues, state.queues, rtol=0, atol=1e-12)


# Rows and times.
EXACT = [pytest.param(1, 90, id="one row"), pytest.param(8, 12, id="eight rows", marks=pytest.mark.slow)]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "times"), EXACT)
def test_float32_is_as_exact_as_the_oracle(rows: int, times: int, weights: torch.dtype) -> None:
    """A mean and a deviation: nothing that a small difference makes another choice."""
    pools = Pool(), Pool()
    for seed in range(15):
        options = {"output": "gaussians", "components": 1, "bound": 2.0, "channels": 3, "seed": seed}
        arguments = cast(call(rows, times, **options), torch.float32, weights)
        exact = generate(cast(arguments, torch.float64), "reference")
        found, oracle = (generate(arguments, kernels, Host(multiprocessors=1)) for kernels in ("cuda", "reference"))
        pools[0].add(found[0], oracle[0], exact[0])
        pools[1].add(found[1].queues, oracle[1].queues, exact[1].queues)
    for pool, name in zip(pools, ("samples", "queues"), strict=True):
        assert pool.count > 1000
        pool.check(name, torch.float32)


@pytest.mark.parametrize("machine", [{"multiprocessors": 1}, {"multiprocessors": 6}], ids=["one block", "chains"])
@pytest.mark.parametrize("output", ["categorical", "logistics"])
def test_pieces_are_the_whole(machine: dict[str, Any], output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls, and of launches."""
    whole = call(3, 17, output=output, channels=2, taps=3)
    drawn, end = generate(whole, "cuda", Host(**machine))
    state, pieces, begin = whole["state"], [], 0
    monkeypatch.setattr(cuda, "_TIMES", 4)
    for times in (1, 0, 9, 7):
        part = slice(begin, begin + times)
        host = Host(**machine)
        piece = {"noise": whole["noise"][:, part], "condition": whole["condition"][..., part], "state": state}
        found, state = generate({**whole, **piece}, "cuda", host)
        assert len(host.launched) == -(-times // 4)
        pieces.append(found)
        begin += times
    assert torch.equal(torch.cat(pieces, 1), drawn)
    assert torch.equal(state.queues, end.queues)
    assert torch.equal(state.previous, end.previous)


def test_a_row_does_not_depend_on_its_batch() -> None:
    arguments = call(9, 11, channels=2)
    drawn, after = generate(arguments, "cuda", Host(multiprocessors=3))
    first = {"noise": arguments["noise"][:2], "state": WaveNetState(*(t[:2] for t in arguments["state"]))}
    alone = generate({**arguments, **first, "condition": arguments["condition"][:2]}, "cuda", Host(multiprocessors=3))
    assert torch.equal(alone[0], drawn[:2])
    assert torch.equal(alone[1].queues, after.queues[:2])


def test_no_rows_and_no_times() -> None:
    arguments, host = call(2, 3), Host()
    empty = WaveNetState(*(t[:0] for t in arguments["state"]))
    nobody, _ = generate({**arguments, "noise": arguments["noise"][:0], "state": empty}, "cuda", host)
    none, state = generate({**arguments, "noise": arguments["noise"][:, :0]}, "cuda", host)
    assert (nobody.shape, none.shape, host.launched) == ((0, 3), (2, 0), [])
    assert torch.equal(state.queues, arguments["state"].queues)
    assert torch.equal(state.previous, arguments["state"].previous)


def test_numbers_that_are_not_finite_and_classes_that_are_none_draw_some_class() -> None:
    """Nothing is checked on a GPU, which would have to be waited for; nothing outside of memory is read either."""
    arguments = call(2, 6)
    arguments["biases"][-1][2] = torch.nan
    arguments["state"] = arguments["state"]._replace(previous=torch.tensor([-5, 1 << 40]))
    drawn, _ = generate(arguments, "cuda", Host())
    assert ((drawn >= 0) & (drawn < 21)).all()


def test_numbers_that_fit_nowhere_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"the numbers of Network\(residual=9, .*\) do not fit into the 100 bytes of shared"):
        generate(call(1, 2), "cuda", Host(shared_bytes=100))


SIZES = [
    cuda.Network(64, 64, 256, 256, 256, 2, 0, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) * 2),
    cuda.Network(64, 64, 128, 128, 30, 2, 80, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) * 3),
    cuda.Network(512, 256, 256, 256, 30, 3, 80, (1, 2, 4, 8, 16, 32) * 4),
    cuda.Network(1, 1, 1, 1, 1, 1, 0, (1,)),
]


@pytest.mark.parametrize("network", SIZES, ids=lambda of: f"R={of.residual}, L={len(of.dilations)}")
@pytest.mark.parametrize("shared_bytes", [99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize("multiprocessors", [1, 2, 3, 14, 46, 132])
def test_every_card_gets_what_it_can_run(network: cuda.Network, shared_bytes: int, multiprocessors: int) -> None:
    """All blocks at the same time, each part of the network once, nothing twice at one place of shared memory."""
    card = cuda.Card(multiprocessors, shared_bytes)
    for weight in (torch.float32, torch.bfloat16, torch.float64):
        number = torch.float64 if weight == torch.float64 else torch.float32
        for batch in (1, 7, 64, 5000):
            try:
                found, chains = cuda.launch_of(network, batch, weight, number, card)
            except RuntimeError:
                assert multiprocessors < 14
                assert network.residual == 512
                continue
            assert 1 <= chains * len(found.members) <= multiprocessors
            assert found.shared() <= shared_bytes
            for part, whole in (("layers", len(network.dilations)), ("hidden", network.hidden), ("outputs", network.outputs)):
                assert [*chain(*(getattr(m, part) for m in found.members))] == list(range(whole))
            for member in found.members:
                held = [
                    (place, place + found.vectors(size))
                    for size, place in zip(member.sizes(network), found.places(member), strict=True)
                    if place >= 0
                ]
                held.sort()
                assert all(end <= begin for (_, end), (begin, _) in pairwise(held))
    if multiprocessors == 132 and network.residual <= 64:
        for weight, enough in ((torch.float32, 163 << 10), (torch.bfloat16, 99 << 10)):
            assert cuda.chain_of(network, 1, weight, torch.float32, card).on_chip or shared_bytes < enough


def test_opcheck() -> None:
    arguments = cast(call(2, 3, channels=2), torch.float32)
    network = (list(arguments["dilations"]), arguments["condition"], arguments["condition_weights"])
    tensors = arguments["noise"], *arguments["state"], arguments["weights"], arguments["biases"], *network
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    operator = torch.ops.flowkern_cuda.wavenet_generate
    torch.library.opcheck(operator, (*tensors, 0, 0, -7.0, 1.0), test_utils=checks)
