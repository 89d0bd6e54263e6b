"""Every operator's rows: none at all, of any leading shape, not finite, on any number of threads."""

from __future__ import annotations

import pytest
import torch
from accuracy import using
from calls import outputs_of
from case import Case
from contract import EACH_CASE, on_each_kernel


@on_each_kernel()
def test_no_rows(case: Case, kernels: str, dtype: torch.dtype) -> None:
    example = case.draw(0, 0)
    leaves = example.leaves(dtype, kernels)
    with using(kernels):
        outputs = outputs_of(case.operator(**example.arguments(leaves)))
    one = case.evaluate(case.draw(1, 0), dtype, "reference", grads=False)
    assert [o.shape for o in outputs] == [(0, *one[name].shape[1:]) for name in case.outputs]
    sum(o.sum() for o in outputs).backward()  # type: ignore[union-attr]
    assert all((leaf.grad == 0).all() for leaf in leaves.values())
    with torch.no_grad(), using(kernels):
        again = outputs_of(case.operator(**example.arguments(leaves)))
    assert [o.shape for o in again] == [o.shape for o in outputs]


@on_each_kernel()
def test_leading_dimensions(case: Case, kernels: str, dtype: torch.dtype) -> None:
    """Without a gradient, where the shapes of the batch are handled once more."""
    example = case.draw(6, 0)
    flat = case.evaluate(example, dtype, kernels, grads=False)
    with torch.no_grad(), using(kernels):
        for shape in ((2, 3), (1, 6), (2, 1, 3)):
            shaped = example.with_rows(lambda t, shape=shape: t.reshape(*shape, *t.shape[1:]))
            outputs = outputs_of(case.operator(**shaped.arguments(shaped.leaves(dtype, kernels, grads=False))))
            for name, output in zip(case.outputs, outputs, strict=True):
                assert output.shape == (*shape, *flat[name].shape[1:])
                torch.testing.assert_close(output.cpu().reshape(flat[name].shape), flat[name])
        single = example.with_rows(lambda t: t[0])
        outputs = outputs_of(case.operator(**single.arguments(single.leaves(dtype, kernels, grads=False))))
    for name, output in zip(case.outputs, outputs, strict=True):
        torch.testing.assert_close(output.cpu(), flat[name][0], rtol=1e-5, atol=1e-5)


@on_each_kernel()
def test_gradients_of_leading_dimensions(case: Case, kernels: str) -> None:
    example = case.draw(6, 0, **next(iter(case.smooth.values())))
    shaped = example.with_rows(lambda t: t.reshape(2, 3, *t.shape[1:]))
    found = []
    for call in (example, shaped):
        leaves = call.leaves(torch.float64, kernels)
        with using(kernels):
            outputs = outputs_of(case.operator(**call.arguments(leaves)))
        total = sum(o.sin().sum() for o in outputs)
        found.append(torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True))
    torch.testing.assert_close([g.reshape(f.shape) for f, g in zip(*found, strict=True)], list(found[0]))


@on_each_kernel()
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_shows_it_and_touches_no_other(case: Case, kernels: str, bad: float) -> None:
    variations = [{}, *case.smooth.values()] if kernels == "native" else [{}]
    for variation, batch, grads in [
        (v, b, g) for v in variations for b in {case.rows(kernels, n) for n in (5, 40)} for g in (False, True)
    ]:
        example = case.draw(batch, 0, **variation)
        clean = case.evaluate(example, torch.float32, kernels, grads=grads)
        others = torch.arange(batch) != 2
        first, x = next(iter(example.rows.items()))
        for feature in range(x.shape[1]) if kernels == "native" else (0, x.shape[1] - 1):
            dirty = x.clone()
            dirty[2, feature] = bad
            changed = type(example)({**example.rows, first: dirty}, example.parameters, example.arguments)
            found = case.evaluate(changed, torch.float32, kernels, grads=False)
            if case.shows:
                assert not torch.isfinite(found[case.shows][2]).all()
            for name in case.outputs:
                torch.testing.assert_close(found[name][others], clean[name][others], rtol=1e-5, atol=1e-5)


@EACH_CASE
def test_results_do_not_depend_on_the_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    example = case.draw(1200, 0, **case.large)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(case.evaluate(example, dtype, "native"))
    finally:
        torch.set_num_threads(threads)
    for name, value in results[0].items():
        assert all(torch.equal(value, other[name]) for other in results[1:]), name
