"""Layers of images: log-determinants against the full Jacobian, round trips, what they are at first, bad input."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkern import nn as fnn
from flowkern.univariate import Affine

SHAPE = (3, 2, 4)
SCALES = ("none", "exp", "clamped_exp", "soft_clipped_exp", "softplus", "sigmoid", "tanh", "atan")
MASKS: dict[str, Any] = {
    "halves": "halves",
    "alternating": "alternating",
    "checkerboard": "checkerboard",
    "channels": [False, True, True],
    "any": torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) > 0.4,
}


def perturbed(layer: fnn.Transform) -> fnn.Transform:
    """In float64, with parameters that are none of those at first."""
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return layer.double().eval()


def coupling(mask: Any, swap: bool = False, context: int = 0, **options: Any) -> fnn.AffineCoupling:
    return fnn.AffineCoupling(SHAPE, (6, 6), context, mask, swap, "tanh", **options)


def layers() -> dict[str, Any]:
    norm = fnn.BatchNorm(SHAPE)
    norm(3 * torch.randn(20, *SHAPE) + 1)
    prior = coupling("halves", True, scale="exp", placement="standardize")
    return {
        **{f"coupling, {name}": coupling(mask) for name, mask in MASKS.items()},
        **{f"coupling, {name}, swapped": coupling(mask, True, 2) for name, mask in MASKS.items()},
        **{f"coupling, {scale}": coupling("checkerboard", scale=scale) for scale in SCALES if scale != "none"},
        **{f"coupling of channels, {scale}": coupling("halves", scale=scale) for scale in SCALES if scale != "none"},
        "coupling, additive": fnn.AdditiveCoupling(SHAPE, (6,), mask="checkerboard"),
        "coupling, gate": coupling("halves", scale="sigmoid", placement="gate"),
        "coupling, shift first": coupling(MASKS["any"], scale="sigmoid", placement="shift_scale"),
        "act norm": fnn.ActNorm(SHAPE),
        "act norm of vectors": fnn.ActNorm(5),
        "convolution": fnn.InvertibleConv1x1(SHAPE),
        "convolution, plain": fnn.InvertibleConv1x1(SHAPE, lu=False),
        "convolution of vectors": fnn.InvertibleConv1x1(5),
        "convolution of vectors, plain": fnn.InvertibleConv1x1(5, lu=False),
        "convolution of one channel": fnn.InvertibleConv1x1((1, 2, 2)),
        "batch norm": norm,
        "scaling": fnn.Scaling(5),
        "squeeze": fnn.Squeeze(SHAPE),
        "split": fnn.MultiScale([fnn.Squeeze(SHAPE), fnn.ActNorm((6, 1, 2))]),
        "learned prior": fnn.MultiScale([prior, fnn.ActNorm((1, 2, 4))]),
    }  # fmt: skip


NAMES = pytest.mark.parametrize("name", layers())


def drawn(layer: fnn.Transform, *batch: int) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(*batch, *layer.event_shape).double()
    return x, torch.randn(*batch, 2).double() if layer.conditional else None


@NAMES
def test_log_determinants_are_those_of_the_jacobian(name: str) -> None:
    layer = perturbed(layers()[name])
    x, context = drawn(layer, 2, 3)
    z, log_det = layer(x, context)
    assert (z.shape, log_det.shape) == ((2, 3, *layer.noise_shape), (2, 3))
    back, other = layer.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(other, -log_det)
    row, of_row = x[1, 2], None if context is None else context[1, 2]
    for function, start, wanted in ((layer, row, log_det[1, 2]), (layer.inverse, z[1, 2].detach(), other[1, 2])):
        jacobian = torch.autograd.functional.jacobian(lambda v, f=function: f(v, of_row)[0], start)
        matrix = jacobian.reshape(layer.features, layer.features)
        torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, wanted)


@NAMES
def test_empty_batches_single_events_and_copies(name: str) -> None:
    layer = perturbed(layers()[name])
    for batch in ((), (0,), (2, 0)):
        x, context = drawn(layer, *batch)
        z, log_det = layer(x, context)
        assert (z.shape, log_det.shape) == ((*batch, *layer.noise_shape), batch)
        assert layer.inverse(z, context)[0].shape == x.shape
    twin = copy.deepcopy(layer)
    twin.load_state_dict(layer.state_dict())
    x, context = drawn(layer, 4)
    torch.testing.assert_close(twin(x, context), layer(x, context))
    torch.testing.assert_close(layer(x.mT.contiguous().mT if x.dim() > 2 else x, context), layer(x, context))


@NAMES
def test_rows_that_are_not_finite_show(name: str) -> None:
    layer = perturbed(layers()[name])
    x, context = drawn(layer, 3)
    expected = layer(x, context)[1]
    x[1].view(-1)[-1] = torch.inf
    found = layer(x, context)[1]
    assert found.isfinite().tolist() == [True, False, True]
    torch.testing.assert_close(found[::2], expected[::2])


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], g: Sequence[Tensor]) -> Sequence[Tensor]:
    pairs = [(o, of) for o, of in zip(outputs, g, strict=True) if o.requires_grad]  # some log-determinants are constant
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad([o for o, _ in pairs], inputs, [of for _, of in pairs], **options)


@NAMES
def test_rebuilt_inputs_have_the_gradients_of_the_call(name: str) -> None:
    layer = perturbed(layers()[name])
    if isinstance(layer, fnn.MultiScale):
        return  # holds stacks of its own, which rebuild theirs
    for inverse in (False, True):
        x, context = drawn(layer, 3)
        x = x.reshape(3, *(layer.noise_shape if inverse else layer.event_shape)).requires_grad_()
        others = [*layer.parameters(), *([] if context is None else [context.requires_grad_()])]
        outputs = (layer.inverse if inverse else layer)(x, context)
        g = [torch.randn(o.shape).double() for o in outputs]
        expected = gradients(outputs, [x, *others], g)
        found_x, *again = layer.rebuild(outputs[0].detach(), context, inverse, layer.memo())
        torch.testing.assert_close([found_x, *again], [x, *outputs])
        torch.testing.assert_close(gradients(again, [found_x, *others], g), expected)


def test_a_mask_of_channels_is_that_of_all_their_numbers() -> None:
    whole, single = (
        coupling(mask) for mask in ([False, True, True], torch.tensor([False, True, True])[:, None, None].expand(SHAPE))
    )
    single.load_state_dict(whole.state_dict())
    x = torch.randn(4, *SHAPE)
    torch.testing.assert_close(single(x), whole(x))
    assert torch.equal(whole(x)[0][:, 0], x[:, 0])


def test_an_images_context_is_the_same_at_every_pixel() -> None:
    layer = perturbed(coupling("checkerboard", context=2))
    x, context = torch.randn(4, *SHAPE).double(), torch.randn(5, 1, 2).double()
    z, log_det = layer(x, context)
    assert (z.shape, log_det.shape) == ((5, 4, *SHAPE), (5, 4))
    torch.testing.assert_close(z[2, 3], layer(x[3], context[2, 0])[0])


def test_the_first_batch_sets_an_act_norm() -> None:
    layer, x = fnn.ActNorm(SHAPE), 5 * torch.randn(40, *SHAPE) + torch.arange(3.0)[:, None, None]
    layer.eval()
    torch.testing.assert_close(layer(x)[0], x)
    layer.train()
    assert layer(x[:0])[0].shape == (0, *SHAPE)  # no batch at all
    z, _ = layer(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.square().mean((0, 2, 3)), torch.ones(3))
    state = copy.deepcopy(layer.state_dict())
    layer(7 * x)
    torch.testing.assert_close(layer.state_dict(), state)
    other = fnn.ActNorm(SHAPE)
    other.load_state_dict(state)
    other(7 * x)
    torch.testing.assert_close(other.state_dict(), state)
    z.sum().backward()
    assert layer.bias.grad is not None


def test_an_invertible_convolution_begins_as_a_rotation_and_keeps_its_permutation() -> None:
    for lu in (True, False):
        layer = fnn.InvertibleConv1x1((6, 2, 2), lu, torch.Generator().manual_seed(3))
        x = torch.randn(5, 6, 2, 2)
        z, log_det = layer(x)
        torch.testing.assert_close(z.norm(dim=1), x.norm(dim=1))
        torch.testing.assert_close(log_det, torch.zeros(5), atol=1e-5, rtol=0)
        matrix = torch.randn(6, 6)
        layer.set_weight(matrix)
        torch.testing.assert_close(layer(x)[0], torch.einsum("ij,bjhw->bihw", matrix, x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer(x)[1], 4 * torch.linalg.slogdet(matrix).logabsdet.expand(5))
        assert {name for name, _ in layer.named_parameters()} == ({"lower", "upper", "log_scale"} if lu else {"weight"})
    with torch.autocast("cpu", torch.bfloat16):  # the way back keeps its precision
        torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x, atol=1e-4, rtol=1e-4)


def test_a_singular_convolution() -> None:
    layer, x = fnn.InvertibleConv1x1((2, 2, 2), lu=False), torch.randn(3, 2, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.ones(2, 2))
    assert (layer(x)[1] == -torch.inf).all()
    with pytest.raises(RuntimeError, match=r"^weight: expected an invertible matrix, got \[\[1\.0"):
        layer.inverse(x)
    with pytest.raises(ValueError, match=r"^weight: expected an invertible matrix \(2, 2\), got \[\[1\.0, 1\.0\]"):
        fnn.InvertibleConv1x1(2).set_weight(torch.ones(2, 2))


def test_networks_begin_as_the_papers_say() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert (fnn.ConvNet(3, 5, (8, 8))(x) == 0).all()
    net = fnn.ConvNet(3, 5, ())
    assert [type(layer) for layer in net] == [fnn.ZeroConv2d]
    layer = fnn.WeightNormConv2d(3, 5)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.direction, layer.bias, padding=1))
    with torch.no_grad():
        layer.direction *= 7
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.direction / 7, layer.bias, padding=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.AffineCoupling((1, 4, 4)), "mask: expected some of the 16 features to be transformed, got 0"),
        (lambda: fnn.AffineCoupling((3, 4)), "features: expected a number or a shape (channels, height, width), got (3, 4)"),
        (lambda: coupling([True]), "mask: expected a boolean tensor (3,) or (3, 2, 4), got torch.bool (1,)"),
        (lambda: fnn.AffineCoupling(4, mask="checkerboard"), "mask: expected a boolean tensor or one of halves, alternating,"),
        (lambda: coupling("rows"), "mask: expected a boolean tensor or one of halves, alternating, checkerboard, got 'rows'"),
        (
            lambda: fnn.Coupling(SHAPE, Affine(), network=nn.Conv2d(2, 3, 1))(torch.randn(2, *SHAPE)),
            "network: its result: expected shape (2, 2, 2, 4), got (2, 3, 2, 4)",
        ),
        (lambda: coupling("halves", context=2)(torch.randn(2, *SHAPE)), "context: this layer takes 2 context features, got"),
        (lambda: coupling("halves")(torch.randn(2, 3, 4, 2)), "x: expected shape (..., 3, 2, 4), got (2, 3, 4, 2)"),
        (lambda: fnn.ActNorm((3, 0, 2)), "features: expected a shape of positive sizes such as (3, 8, 8), got (3, 0, 2)"),
        (lambda: fnn.InvertibleConv1x1(0), "features: expected a whole number of at least 1, got 0"),
        (lambda: fnn.InvertibleConv1x1(SHAPE)(torch.randn(2, 2, 2, 4)), "x: expected shape (..., 3, 2, 4), got (2, 2, 2, 4)"),
        (lambda: fnn.Squeeze((1, 3, 4)), "event_shape: expected (channels, height, width) with height and width multiples"),
        (lambda: fnn.ResNet(3, 4, (8, 16)), "hidden: residual blocks need one or more equal widths, got (8, 16)"),
        (lambda: fnn.ConvNet(3, 4, (8,), "sin"), "activation: expected one of identity, relu"),
        (lambda: fnn.Scaling(0), "features: expected a whole number of at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()
