"""r9y9's WaveNet: the same outputs and gradients, the same samples of the same random numbers, and what is left to the library.

The index has version 0.1.1. The repository's later form (0.2, outputs of Gaussians) is tested where PYTHONPATH names a
checkout of it, which `make test-peers` does for one in $FLOWKERN_PEER_SOURCES/wavenet_vocoder.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import check_rule
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import flowkern as fk
from flowkern import reference
from flowkern.adapters import wavenet_vocoder as adapter

wavenet_vocoder = pytest.importorskip("wavenet_vocoder")
numpy = pytest.importorskip("numpy")
WaveNet = wavenet_vocoder.WaveNet
NEWER = "output_distribution" in inspect.signature(WaveNet.__init__).parameters

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, about what the library uses

SMALL = {
    "out_channels": 9,
    "layers": 6,
    "stacks": 2,
    "residual_channels": 5,
    "gate_channels": 6,
    "skip_out_channels": 7,
    "kernel_size": 3,
    "dropout": 0.0,
    "scalar_input": True,
}
CLASSES = {"scalar_input": False, "out_channels": 130, "skip_out_channels": 40}
SPEAKERS = {"gin_channels": 3, "n_speakers": 5, "use_speaker_embedding": True}
FORMS: dict[str, dict[str, Any]] = {
    "classes": CLASSES,
    "logistics": {},
    "two taps": {"kernel_size": 2, "layers": 8},
    "one layer": {"layers": 1, "stacks": 1},
    "classes, local": {**CLASSES, "cin_channels": 4},
    "local": {"cin_channels": 4},
    "global": {"gin_channels": 3, "use_speaker_embedding": False},
    "speakers": SPEAKERS,
    "local, speakers": {"cin_channels": 4, **SPEAKERS, "kernel_size": 2},
    "upsampled": {"cin_channels": 4, "upsample_conditional_features": True},
}
UP = [2, 3]
if NEWER:
    FORMS["upsampled"] |= {"upsample_params": {"upsample_scales": UP, "cin_channels": 4}}
    FORMS |= {
        "a Gaussian": {"output_distribution": "Normal", "out_channels": 2},
        "a Gaussian of three channels": {"output_distribution": "Normal", "out_channels": 3},
        "Gaussians, local": {"output_distribution": "Normal", "cin_channels": 4},
    }
else:
    FORMS["upsampled"] |= {"upsample_scales": UP}
    FORMS |= {
        "no legacy": {"legacy": False, **SPEAKERS},
        "no weight_norm": {"weight_normalization": False, "cin_channels": 4, **SPEAKERS},
    }
EACH = pytest.mark.parametrize("form", FORMS)


def made(form: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model whose weights are not those of the beginning."""
    model = WaveNet(**{**SMALL, **FORMS[form], **options})
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.to(dtype).eval()


def twins(form: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """Accelerated, and the library's own: only an accelerated one can be copied while it has weight_norm."""
    accelerated = fk.accelerate(made(form, dtype, **options))
    return accelerated, fk.restore(copy.deepcopy(accelerated))


def conditions(form: str, rows: int, time: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """What a call is given, drawn anew."""
    options, found = FORMS[form], {}
    if "cin_channels" in options:
        short = time // (UP[0] * UP[1]) if "upsample_conditional_features" in options else time
        found["c"] = torch.randn(rows, 4, short, dtype=dtype)
    if "gin_channels" in options:
        ids = torch.randint(0, 5, (rows, 1))
        found["g"] = ids if options["use_speaker_embedding"] else torch.randn(rows, 3, dtype=dtype)
    return found


def status(model: Any) -> str:
    return fk.explain(model).rows[0][2]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def _double() -> Iterator[None]:
    """The library's loop makes its first input in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 the library is what is exact, which the weights' gradients of torch's own convolution are not."""
    original = nn.Conv1d._conv_forward

    def conv_forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype is not torch.float64:
            return original(self, x, weight, bias)
        return reference.causal_conv1d(x, weight, bias, dilation=self.dilation[0])

    monkeypatch.setattr(nn.Conv1d, "_conv_forward", conv_forward)


# -- the forward pass -------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.usefixtures("_exact_convolutions")
def test_outputs_and_gradients(form: str, dtype: torch.dtype) -> None:
    def cases() -> Iterator[Any]:
        for seed in range(8):
            torch.manual_seed(seed)
            model = fk.accelerate(made(form))  # which can be copied
            yield model, torch.randn(4, model.first_conv.in_channels, 60).double(), conditions(form, 4, 60)

    def evaluate(case: Any, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
        model = copy.deepcopy(case[0])
        if backend == "reference":
            fk.restore(model)
        model.to(dtype)
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case[2].items()}
        leaves = {**dict(model.named_parameters()), "x": case[1].to(dtype).requires_grad_()}
        leaves |= {k: v.requires_grad_() for k, v in given.items() if v.is_floating_point()}
        y = model(leaves["x"], **given)
        assert y.dtype is dtype
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).bfloat16().to(dtype)
        got = torch.autograd.grad((y * weights).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        assert backend == "reference" or status(model) == "accelerated"
        gradients = dict(zip(leaves, got, strict=True))
        if model.scalar_input:  # a weight that is one number has no direction: what there is of it is rounding
            largest = max(float(g.abs().max()) for g in got)
            assert gradients.pop("first_conv.weight_v").abs().max() < 100 * torch.finfo(dtype).eps * largest
        pools: dict[str, list[Tensor]] = {"gradient of conditions and signal": []}  # of one bias there are too few numbers
        for name, g in gradients.items():
            *modules, _ = name.split(".")  # the same one of all layers
            place = ".".join(part for part in modules if not part.isdigit()) or "conditions and signal"
            pools.setdefault(f"gradient of {place}", []).append(g.flatten())
        return {"value": y.detach(), **{name: torch.cat(gs) for name, gs in pools.items()}}

    check_rule(cases(), evaluate, dtype)


@EACH
def test_softmax_and_dimensions(form: str) -> None:
    accelerated, own = twins(form)
    for rows, time in ((1, 6), (3, 60)):
        x, given = torch.randn(rows, own.first_conv.in_channels, time).double(), conditions(form, rows, time)
        found = accelerated(x, **given, softmax=True)
        assert_same(found, own(x, **given, softmax=True))
        assert_same(found.sum(1), torch.ones(rows, time).double())
    assert status(accelerated) == "accelerated"


def test_what_the_loss_does_not_depend_on_has_no_gradient() -> None:
    """Optimisers leave such parameters alone, weight decay included."""
    without = []
    for model in twins("local"):
        model(torch.randn(2, 1, 30).double(), **conditions("local", 2, 30)).sum().backward()
        without.append([name for name, p in model.named_parameters() if p.grad is None])
    assert without[0] == without[1]
    assert all(name.startswith("conv_layers.5.conv1x1_out") for name in without[0])


@pytest.mark.parametrize("form", ["classes, local", "local, speakers"])
def test_training_takes_the_same_course(form: str) -> None:
    x = torch.randn(4, twins(form)[1].first_conv.in_channels, 48).double()
    given, courses = conditions(form, 4, 48), []
    for model in twins(form):
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.train().parameters(), 1e-2, weight_decay=0.1)
        losses = []
        for _ in range(20):
            loss = F.mse_loss(model(x, **given), x.mean(1, keepdim=True).expand(-1, model.out_channels, -1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        courses.append(torch.tensor(losses))
    assert courses[0][-1] < courses[0][0]
    assert_same(courses[0], courses[1])


# -- the loop ---------------------------------------------------------------------------------------------------------


def drawn(model: Any, **arguments: Any) -> Tensor:
    """What the loop gives from one seed, classes by the inverse of the cumulative distribution at numbers of torch.rand.

    The library draws them from NumPy's generator, or by OneHotCategorical; both draw the same once they are given the numbers.
    """
    torch.manual_seed(3)
    dtype = model.first_conv.bias.dtype
    numbers = iter(torch.rand(1, 1000, 1, dtype=dtype)[0, :, 0].tolist())
    torch.manual_seed(3)

    def choice(values: Any, p: Any) -> Any:
        return values[min(int((numpy.cumsum(p.astype("float64")) <= next(numbers)).sum()), len(values) - 1)]

    def one_hot(self: Any) -> Tensor:
        return F.one_hot(
            torch.tensor([choice(range(self.probs.shape[1]), self.probs[0].detach().numpy())]), self.probs.shape[1]
        ).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numpy.random, "choice", choice)
        patch.setattr(torch.distributions.OneHotCategorical, "sample", one_hot)
        return model.incremental_forward(**arguments)


@EACH
@pytest.mark.usefixtures("_double")
def test_samples_of_the_same_random_numbers(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerated, own = twins(form)
    given, calls = conditions(form, 1, 90), []
    original = fk.ops.wavenet_generate
    monkeypatch.setattr(fk.ops, "wavenet_generate", lambda *a, **k: (calls.append(len(a[0][0])), original(*a, **k))[1])
    accelerated(torch.zeros(1, own.first_conv.in_channels, 90), **given)  # which includes the check
    calls.clear()
    found = drawn(accelerated, **given, T=90)
    after = torch.rand(3)
    expected = drawn(own, **given, T=90)
    assert calls == [90]
    assert found.is_contiguous()
    assert not found.requires_grad
    assert_same(found, expected)
    assert len(found.flatten().unique()) > 10 or len(found[0].argmax(0).unique()) > 10
    if own.scalar_input:
        assert torch.equal(after, torch.rand(3)), "as many numbers were drawn"
    assert status(accelerated) == "accelerated"


@pytest.mark.parametrize("form", ["classes", "logistics"])
def test_samples_in_float32(form: str) -> None:
    accelerated, own = twins(form, torch.float32)
    found, expected = drawn(accelerated, T=50), drawn(own, T=50)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("form", ["classes", "classes, local", "logistics", "local, speakers", "upsampled"])
@pytest.mark.parametrize(("heard", "time"), [(60, None), (60, 60), (36, 60), (60, 6)])
def test_given_inputs(form: str, heard: int, time: int | None) -> None:
    """Samples of outputs that heard what is given, and those that follow; in either order of the dimensions."""
    accelerated, own = twins(form)
    channels, given = own.first_conv.in_channels, conditions(form, 1, 60)
    x = torch.rand(1, channels, heard)
    for inputs in (x, x.transpose(1, 2).contiguous()):
        arguments = {**given, "T": time, "test_inputs": inputs}
        assert_same(drawn(accelerated, **arguments), drawn(own, **arguments))


@pytest.mark.usefixtures("_double")
def test_given_inputs_of_several_rows() -> None:
    accelerated, own = twins("local, speakers")
    arguments = {**conditions("local, speakers", 3, 40), "T": 40, "test_inputs": torch.rand(3, 1, 25)}
    assert_same(drawn(accelerated, **arguments), drawn(own, **arguments))


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("softmax", [True, False])
def test_outputs_of_given_inputs(softmax: bool) -> None:
    """Without quantize the loop returns the outputs: one pass gives them; where they would be heard, it is the library's."""
    accelerated, own = twins("classes")
    x = F.one_hot(torch.randint(0, 130, (2, 30)), 130).transpose(1, 2).double()
    for time in (30, 33):
        arguments = {"T": time, "test_inputs": x, "softmax": softmax, "quantize": False}
        found = accelerated.incremental_forward(**arguments)
        assert_same(found, own.incremental_forward(**arguments))
    if softmax:
        assert_same(found[..., :30], accelerated(x, softmax=True))
    arguments = {"T": 4, "softmax": softmax, "quantize": False}
    assert_same(accelerated.incremental_forward(**arguments), own.incremental_forward(**arguments))


@pytest.mark.usefixtures("_double")
def test_what_is_heard_first() -> None:
    accelerated, own = twins("classes")
    first = F.one_hot(torch.tensor([[5]]), 130).double()
    served = []
    adapter_answer = adapter._answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "_answer", lambda *a: (served.append(1), adapter_answer(*a))[1])
        for initial in (first, first.transpose(1, 2), 0.5 * first, first + first.roll(1, 2)):
            arguments = {"initial_input": initial, "T": 20}
            assert_same(drawn(accelerated, **arguments), drawn(own, **arguments))
    assert len(served) == 2, "what is no class is for the library"
    accelerated, own = twins("logistics")
    assert_same(
        drawn(accelerated, initial_input=torch.full((1, 1, 1), 0.7)), drawn(own, initial_input=torch.full((1, 1, 1), 0.7))
    )


@pytest.mark.usefixtures("_double")
def test_a_condition_in_either_order() -> None:
    accelerated, own = twins("local")
    c = torch.randn(1, 40, 4)
    for time in (40, 30):
        assert_same(drawn(accelerated, c=c, T=time), drawn(own, c=c, T=time))
    assert_same(drawn(accelerated, T=20), drawn(own, T=20))  # without it


@pytest.mark.usefixtures("_double")
def test_log_scales_are_clamped_where_the_library_does() -> None:
    accelerated, own = twins("logistics")
    assert_same(drawn(accelerated, T=30, log_scale_min=2.0), drawn(own, T=30, log_scale_min=2.0))


def test_a_progress_bar_runs_to_its_end() -> None:
    accelerated, _ = twins("logistics", torch.float32)
    seen: list[int] = []
    found = accelerated.incremental_forward(T=numpy.int64(7), tqdm=lambda steps: (seen.append(i) or i for i in steps))
    assert seen == list(range(7))
    assert found.shape == (1, 1, 7)


# -- left to the library ----------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which methods the operators served."""
    calls: list[str] = []
    one, other = adapter.WaveNetNetwork.parameters, adapter.WaveNetNetwork.generate
    monkeypatch.setattr(adapter.WaveNetNetwork, "parameters", lambda *a: (calls.append("pass"), one(*a))[1])
    monkeypatch.setattr(adapter.WaveNetNetwork, "generate", lambda *a: (calls.append("loop"), other(*a))[1])
    return calls


def test_modes_and_hooks(served: list[str]) -> None:
    accelerated, own = twins("logistics", torch.float32, dropout=0.3)
    x = torch.randn(2, 1, 30)
    accelerated(x)
    accelerated.train(), own.train()
    served.clear()
    outcomes = []
    for model in (accelerated, own):
        torch.manual_seed(1)
        outcomes.append(model(x))
        with pytest.raises(RuntimeError, match="incremental_forward only supports eval mode"):
            model.incremental_forward(T=3)
    assert torch.equal(*outcomes)
    assert status(accelerated).endswith("dropout is active (train mode)")
    accelerated.eval()
    handle = accelerated.conv_layers[1].register_forward_hook(lambda module, given, found: (2 * found[0], found[1]))
    assert "a hook is registered on its ResidualConv1dGLU" in status(accelerated)
    accelerated(x)
    assert served == []
    handle.remove()
    accelerated(x)
    assert served == ["pass"]


def test_arguments_that_are_for_the_library(served: list[str]) -> None:
    accelerated, own = twins("local, speakers", torch.float32)
    given = conditions("local, speakers", 2, 30, torch.float32)
    accelerated(torch.randn(2, 1, 30), **given)
    served.clear()
    for x, more in (
        (torch.randn(2, 1, 30).double(), given),
        (torch.randn(2, 3, 30), given),
        (torch.randn(2, 1, 29), given),
        (torch.randn(2, 1, 30), {**given, "c": given["c"][:, :3]}),
        (torch.randn(2, 1, 30), {**given, "g": torch.tensor([[9], [0]])}),
    ):
        errors = []
        for model in (own, accelerated):
            with pytest.raises((RuntimeError, IndexError)) as error:
                model(x, **more)
            errors.append(str(error.value))
        assert errors[0] == errors[1]
        assert error.value.__context__ is None  # the library's alone
    for bad in ({"T": None}, {"T": 0}, {"T": 20, "c": given["c"][:1, :, :9]}):
        with pytest.raises((TypeError, RuntimeError, IndexError)):
            accelerated.incremental_forward(**bad)
    accelerated.clear_buffer()  # the last of them left its buffers in the convolutions
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 1, 30)
        assert torch.equal(accelerated(x, **given), own(x, **given))
    one = {**given, "c": given["c"][:1]}  # for all rows
    assert torch.equal(accelerated(x, **one), own(x, **one))
    assert served == []


def test_transforms_and_compilers_see_the_librarys_code(served: list[str]) -> None:
    accelerated, own = twins("no weight_norm" if not NEWER else "logistics")
    own.make_generation_fast_(), accelerated.make_generation_fast_()
    given = conditions("no weight_norm" if not NEWER else "logistics", 1, 20)
    x = torch.randn(1, 1, 20).double()
    found, expected = (torch.func.jvp(lambda x, m=m: m(x, **given), (x,), (torch.ones_like(x),)) for m in (accelerated, own))
    assert_same(found, expected)
    assert served == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m.conv_layers[1], "causal", False), "its layers are not causal"),
        (lambda m: setattr(m.conv_layers[1].conv, "incremental_forward", lambda x: x), "the incremental_forward of its conv"),
        (lambda m: setattr(m.conv_layers[1], "_forward", lambda *x: x), "the _forward of its layers was replaced"),
        (lambda m: setattr(m, "incremental_forward", lambda x: x), "its incremental_forward was replaced"),
        (lambda m: setattr(m.conv_layers[1].conv, "padding", (0,)), "its convolution is Conv1d.*expected a causal one"),
        (lambda m: m.last_conv_layers.__setitem__(0, nn.ELU()), "its activation is a ELU: expected"),
        (lambda m: setattr(m.last_conv_layers[1], "bias", None), "a convolution of it has no bias"),
        (lambda m: m.to("meta"), "on the meta device"),
    ],
)
def test_reasons(change: Any, reason: str) -> None:
    model = made("logistics")
    assert status(model) == "can be accelerated"
    change(model)
    with pytest.warns(RuntimeWarning, match=f"found nothing to accelerate(.|\n)*left alone: .*{reason}"):
        fk.accelerate(model)
    accelerated = fk.accelerate(made("logistics"))
    if "meta" not in reason:
        change(accelerated)
        assert "left alone" in status(accelerated)


def test_another_formula_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from wavenet_vocoder.modules import ResidualConv1dGLU

    original = ResidualConv1dGLU._forward

    def other(self: Any, *given: Any) -> Any:
        x, skip = original(self, *given)
        return x * 0.9, skip

    monkeypatch.setattr(ResidualConv1dGLU, "_forward", other)
    accelerated, own = twins("local, speakers")
    x, given = torch.randn(2, 1, 30).double(), conditions("local, speakers", 2, 30)
    with pytest.warns(RuntimeWarning, match="leaves a WaveNet as it was: its value differs"):
        assert torch.equal(accelerated(x, **given), own(x, **given))
    assert "another version of the formula" in status(accelerated)


# -- as it was --------------------------------------------------------------------------------------------------------


def test_what_a_model_keeps() -> None:
    model = made("local, speakers")
    parameters, keys, shown, cls = list(model.parameters()), list(model.state_dict()), repr(model), type(model)
    x, given = torch.randn(2, 1, 30).double(), conditions("local, speakers", 2, 30)
    expected = model(x, **given)
    assert fk.accelerate(model) is model
    assert isinstance(model, cls)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert repr(model) == shown
    torch.manual_seed(0)
    assert_same(model(x, **given), expected)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), after), "the self-check drew from the global generator"
    data = pickle.dumps(model)
    assert b"flowkern" not in data
    loaded = pickle.loads(data)
    assert status(loaded) == "can be accelerated"
    assert_same(loaded(x, **given), expected)
    other = fk.accelerate(made("local, speakers"))
    other.load_state_dict(model.state_dict())
    assert_same(other(x, **given), expected)
    twin = copy.deepcopy(model)
    assert status(twin) == "accelerated"
    next(twin.parameters()).data.zero_()
    assert_same(model(x, **given), expected)
    assert fk.restore(model) is model
    assert type(model) is cls
    assert_same(model(x, **given), expected)


@pytest.mark.usefixtures("_double")
def test_weights_are_read_at_every_call() -> None:
    """Also by the library's loop, which keeps weights until a backward pass through its convolutions."""
    accelerated, _ = twins("classes")
    x = torch.rand(1, 130, 20)
    accelerated.incremental_forward(test_inputs=x, T=22, quantize=False)  # the library's
    accelerated(x).sum().backward()
    with torch.no_grad():
        for p in accelerated.parameters():
            p.mul_(0.8)
    plain = fk.restore(copy.deepcopy(accelerated))
    assert_same(drawn(accelerated, T=30), drawn(plain, T=30))
    fresh = made("classes")
    fresh.load_state_dict(plain.state_dict())
    assert_same(drawn(accelerated, T=30), drawn(fresh, T=30))


@pytest.mark.usefixtures("_double")
def test_without_weight_norm_and_with_the_newer_one() -> None:
    accelerated, own = twins("local")
    given = conditions("local", 1, 30)
    x = torch.randn(2, 1, 30)
    expected = own(x, c=given["c"].expand(2, -1, -1))
    accelerated.make_generation_fast_()
    assert_same(accelerated(x, c=given["c"].expand(2, -1, -1)), expected)
    assert_same(drawn(accelerated, **given, T=30), drawn(own, **given, T=30))
    for m in list(accelerated.modules()):
        if isinstance(m, nn.Conv1d):
            parametrizations.weight_norm(m)
    assert_same(accelerated(x, c=given["c"].expand(2, -1, -1)), expected)
    assert_same(drawn(accelerated, **given, T=30), drawn(own, **given, T=30))
    assert status(accelerated) == "accelerated"
    assert_same(copy.deepcopy(accelerated)(x, c=given["c"].expand(2, -1, -1)), expected)


@pytest.mark.usefixtures("_double")
def test_frozen_reads_weights_once_and_notices_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerated, own = twins("logistics")
    reads: list[int] = []
    original = adapter.WaveNetNetwork.weights
    accelerated(torch.randn(1, 1, 9))
    monkeypatch.setattr(adapter.WaveNetNetwork, "weights", lambda self: (reads.append(1), original(self))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with fk.frozen(accelerated), torch.no_grad():
            for _ in range(3):
                assert_same(drawn(accelerated, T=20), drawn(own, T=20))
    assert len(reads) == 1
    with fk.frozen(accelerated):
        with torch.no_grad():
            for model in (accelerated, own):
                model.conv_layers[2].conv.bias.add_(0.3)
        with pytest.warns(RuntimeWarning, match=r"^flowkern.frozen: conv_layers.2.conv.bias has changed inside the block"):
            assert_same(drawn(accelerated, T=20), drawn(own, T=20))
