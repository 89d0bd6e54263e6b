"""Samples of mixtures of logistics from given uniform numbers."""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._mixtures import elements_of, launch, load_components


@triton.jit
def logistic_mixture_sample_kernel(
    uniform, choice, logits, means, log_scales, out, count, columns, components,
    uniform_row, uniform_column, choice_at, logits_at, means_at, log_scales_at,
    STEPS: tl.constexpr, LEAST: tl.constexpr, ACC: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e, r, c, k, inside, given = elements_of(count, columns, components, BLOCK_E, BLOCK_K)
    v = load_components(choice, choice_at, r, c, k, given, ACC)
    score = load_components(logits, logits_at, r, c, k, given, ACC) - tl.log(-tl.log(tl.where(given, v, 0.5)))
    chosen = tl.argmax(tl.where((k < components)[None, :], score, float("-inf")), 1)
    at = r * means_at[0] + c * means_at[1] + chosen * means_at[2]
    mean = tl.load(means + at, inside, 0).to(ACC)
    at = r * log_scales_at[0] + c * log_scales_at[1] + chosen * log_scales_at[2]
    log_scale = tl.load(log_scales + at, inside, 0).to(ACC)
    log_scale = tl.where(log_scale < LEAST, tl.full(log_scale.shape, LEAST, ACC), log_scale)
    u = tl.load(uniform + r * uniform_row + c * uniform_column, inside, 0.5).to(ACC)
    value = mean + tl.exp(log_scale) * tl.log(u / (1 - u))
    if STEPS > 0:  # the nearest of so many steps of half the way from -1 to 1
        value = tl.where(value < -1, -1, tl.where(value > 1, 1, value))
        step = (value + 1) * STEPS
        low = tl.floor(step)
        over, odd = step - low, low - 2 * tl.floor(low / 2)
        value = (low + tl.where((over > 0.5) | ((over == 0.5) & (odd > 0)), 1, 0)) / STEPS - 1
    tl.store(out + e, value, inside)


def logistic_mixture_sample(u, choice, logits, means, log_scales, levels, log_scale_min):
    """Samples of mixtures (rows, columns, components) from uniform numbers (rows, columns) and a choice for each component."""
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if out.numel():
        grid, arguments = launch(u, logits, means, log_scales, log_scale_min)
        with _launch.on(u):
            logistic_mixture_sample_kernel[grid](
                uniform=u, choice=choice, out=out, uniform_row=u.stride(0), uniform_column=u.stride(1),
                choice_at=choice.stride(), STEPS=(levels - 1) / 2 if levels else 0.0, **arguments,
            )  # fmt: skip
    return out
