"""Training in one line, for rows that are at hand: what ``model.fit`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import check_float, check_tensor
from flowkern.data import Rows
from flowkern.flows.flow import Flow
from flowkern.model import Model
from flowkern.models.encoded import Encoded
from flowkern.training.batches import SPLIT, seeded
from flowkern.training.distributed import Processes
from flowkern.training.history import History
from flowkern.training.loop import Training
from flowkern.training.progress import Progress
from flowkern.training.settings import Settings


def fit(
    model: Model,
    x: Tensor,
    context: Tensor | None,
    validation: float | Tensor | Sequence[Tensor],
    *,
    standardize: bool,
    progress: bool,
    **settings: Any,
) -> History:
    """See :meth:`flowkern.model.Model.fit`."""
    chosen = Settings(**{**model.settings, **settings})
    like = next(model.parameters(), None)
    if like is None:
        raise ValueError(f"{type(model).__name__} has no parameters to train")
    _check("x", "context", model, x, context, like)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")
    x, context = x.detach(), None if context is None else context.detach()
    if isinstance(validation, (int, float)):
        train, held = _split(x, context, validation, chosen.seed)
    else:
        parts = validation if isinstance(validation, (tuple, list)) else (validation,)
        if len(parts) not in (1, 2):
            raise ValueError(f"validation: expected a fraction, x, or (x, context), got {len(parts)} parts")
        held = (parts[0], parts[1] if len(parts) == 2 else None)
        _check("validation", "validation[1]", model, *held, like)
        train = (x, context)
    if standardize and isinstance(model, Flow) and {"standardize", "transforms"} & set(getattr(model, "config", ())):
        model.standardize(train[0].to(like))
    rows, held_rows = (Rows(part, context=of) for part, of in (train, held))
    forked = torch.random.fork_rng([like.device] if like.is_cuda else [])
    with Progress(chosen, "" if progress else None) as watch, forked, torch.enable_grad():
        return Training(model, rows, held_rows, None, chosen, Processes(device=like.device), watch=watch).run()


def _check(name: str, context_name: str, model: Model, x: Any, context: Any, like: Tensor) -> None:
    check_tensor(name, x)
    event = tuple(model.event_shape)
    if x.dim() != 1 + len(event) or x.shape[1:] != event or len(x) == 0:
        raise ValueError(f"{name}: expected shape (n, {', '.join(map(str, event))}) with n of at least 1, got {tuple(x.shape)}")
    if model.levels is None and not isinstance(model, Encoded):  # which takes rows of any dtype
        check_float(name, x)
        if x.dtype != like.dtype:
            raise TypeError(f"{name}: expected dtype {like.dtype} like the parameters, got {x.dtype}")
    bad = ~x.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{name}: row {int(bad.nonzero()[0])} is not finite ({int(bad.sum())} such rows)")
    if (context is None) == model.conditional:
        raise ValueError(f"{context_name}: " + ("the model takes none" if context is not None else "the model needs one"))
    if context is not None:
        check_tensor(context_name, context)
        if len(context) != len(x):
            raise ValueError(f"{context_name}: expected {len(x)} rows like {name}, got shape {tuple(context.shape)}")
        if not context.isfinite().all():
            raise ValueError(f"{context_name}: holds numbers that are not finite")


Part = tuple[Tensor, Tensor | None]


def _split(x: Tensor, context: Tensor | None, fraction: float, seed: int) -> tuple[Part, Part]:
    """The rows for training and those set aside, at least one of each."""
    held = round(len(x) * fraction) or 1 if 0 < fraction < 1 else len(x)
    if held >= len(x):
        raise ValueError(f"validation: expected a fraction of the {len(x)} rows that leaves some for both, got {fraction}")
    order = torch.randperm(len(x), generator=seeded(seed, SPLIT)).to(x.device)
    train, rest = order[held:], order[:held]
    if context is None:
        return (x[train], None), (x[rest], None)
    return (x[train], context[train.to(context.device)]), (x[rest], context[rest.to(context.device)])
