"""What every model is, a flow or not."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from flowkern.training import History

AnyModel = TypeVar("AnyModel", bound="Model")


class Model(nn.Module):
    """A density that can be evaluated, sampled, trained, and built again: what every command and every loop asks for.

    A subclass sets ``event_shape``, gives ``log_prob`` and ``sample``, and decorates its ``__init__`` with
    :func:`flowkern.config.configured`. One that is trained by anything but maximum likelihood gives ``loss`` too.

    Shapes: x (..., *event_shape), context (..., context features); their batch shapes broadcast.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.flows.MAF(3, transforms=2, hidden=(8,), context=2)
        >>> x, context = torch.randn(5, 3), torch.randn(5, 2)
        >>> model.loss((x, context))["loss"].backward()
        >>> twin = fk.flows.MAF(**model.config)
        >>> twin.load_state_dict(model.state_dict())
        <All keys matched successfully>
    """

    event_shape: torch.Size
    levels: int | None = None  # a model of whole numbers gives the number of values that each can take
    settings: ClassVar[Mapping[str, Any]] = {}  # defaults of its training that are others than flowkern.training.Settings has
    default_data: ClassVar[str | None] = None  # the data set that commands take where none is named
    draws_noise = False  # whether log_prob draws numbers, of which a row's depend on its place among the rows of a call
    takes_float32 = False  # whether rows may be of float32 where the weights are of half precision, which would round them
    takes_shapes = False  # whether the constructor's `features` may be an image's shape; else images are given as vectors
    config: dict[str, Any]  # the constructor's arguments; see flowkern.config.configured

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_bring_buffers_along)

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density (or log-probability) in nats, with the batch's shape."""
        raise NotImplementedError

    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Samples (*shape, *context batch, *event_shape), without a gradient.

        Args:
            shape: sample shape, as in torch.distributions.
            context: conditions (*batch, context features).
            generator: source of the random numbers.
            chunk_size: samples drawn at once, for each row of the context; bounds the memory of the intermediate results.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density, so that wrappers of modules (DistributedDataParallel, torch.compile) apply."""
        return self.log_prob(x, context)

    def loss(self, batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Named terms, each a mean over the batch: ``"loss"`` is what training minimises, others are for the eye.

        For a model trained by maximum likelihood it is the mean negative log-density, in nats.

        Args:
            batch: x, or (x,) or (x, context), as a data loader gives them.

        Raises:
            ValueError: for a batch of more than two.
        """
        return {"loss": -self(*parts_of(batch)).mean()}  # called as a module, so that hooks run, such as those of fully_shard

    def at_step(self, step: int) -> None:
        """Called by training before each step, counted from 0, for what changes while a model is trained: here nothing does.

        A function of the step alone needs no state of its own, and a run that is continued goes on with it.
        """

    def calibrate(self, x: Tensor, context: Tensor | None = None, batch_size: int = 4096) -> None:
        """Takes from a data set x (n, *event_shape) what evaluation needs, such as batch norm's statistics: here nothing."""

    def fit(
        self,
        x: Tensor,
        context: Tensor | None = None,
        validation: float | Tensor | Sequence[Tensor] = 0.1,
        *,
        standardize: bool = True,
        progress: bool = True,
        **settings: Any,
    ) -> History:
        """Trains in place on rows that are at hand, with early stopping; the weights of the best epoch stay.

        Ctrl-C ends the training, not the program. Nothing is written: for checkpoints, large data and several processes there
        is ``flowkern train``.

        Args:
            x: (n, *event_shape), of the parameters' dtype; on any device, the model is trained where it is.
            context: (n, context features).
            validation: the fraction of the rows that is set aside, or other rows: x, or (x, context).
            standardize: gives a flow a :class:`flowkern.nn.Standardize` layer for x first, unless it has one.
            progress: shows a bar, or lines where no bar can be shown.
            settings: see :class:`flowkern.training.Settings`.

        Returns:
            The losses of each epoch, see :class:`flowkern.training.History`.

        Raises:
            TypeError, ValueError: for an argument that does not fit.
            TrainingError: for a loss that is not finite; the weights are then the best so far, or those of before.

        Example:
            >>> import torch, flowkern as fk
            >>> flow = fk.flows.MAF(2, transforms=2, hidden=(16,))
            >>> history = flow.fit(50 + 10 * torch.randn(500, 2), epochs=3, progress=False)
            >>> len(history.train), history.ended
            (3, 'epochs')
        """
        from flowkern.training.fit import fit

        return fit(self, x, context, validation, standardize=standardize, progress=progress, **settings)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Saves the model: its class and arguments in ``config.json``, its state in ``model.safetensors``.

        :meth:`from_pretrained` builds it again, with the same densities and samples. The format is that of
        :mod:`flowkern.pretrained`. The state is saved as it is on the CPU, in its own dtypes. Parts that are not flowkern's,
        such as an ``embedding`` of torch's layers, are saved without their class; whoever loads the model gives them.

        A model in the folder is replaced at once: a save that fails or is interrupted leaves the old one.

        Args:
            folder: where to save, made where it does not exist.

        Raises:
            flowkern.pretrained.PretrainedError: for a model that could not be built again, such as one of a class of your
                own, or one of which a part was exchanged; for a folder that holds files of these names that are not
                flowkern's.
            OSError: if the files cannot be written.

        Example:
            >>> import tempfile, torch, flowkern as fk
            >>> flow, x = fk.flows.MAF(3, transforms=2, hidden=(8,)).eval(), torch.randn(5, 3)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     flow.save_pretrained(folder)
            ...     twin = fk.Model.from_pretrained(folder)
            >>> type(twin).__name__, torch.equal(twin.log_prob(x), flow.log_prob(x))
            ('MAF', True)
        """
        from flowkern.pretrained import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(
        cls: type[AnyModel], source: str | os.PathLike[str], *, revision: str | None = None, **parts: Any
    ) -> AnyModel:
        """Loads what :meth:`save_pretrained` saved: a model in evaluation mode, on the CPU, in the dtypes it was saved in.

        Files are data only: nothing in them is run or unpickled, and no more is built than the weights hold.

        Args:
            source: a folder; or ``"owner/name"``, a model on the Hugging Face hub, if no folder of that name exists and
                huggingface_hub is installed.
            revision: of a model on the hub: a branch, a tag or a commit.
            parts: the parts that the files do not hold, by the names of their arguments, such as ``embedding=net``; of a
                part inside of another, by both names, ``base_embedding=net``. They take their saved parameters.

        Raises:
            TypeError: if the model is none of this class (``flowkern.Model`` takes any), or parts are missing or unknown.
            flowkern.pretrained.PretrainedError: for files that are damaged, do not belong to each other, or were saved by a
                newer flowkern.
            OSError: if there is no such folder, or files in it cannot be read.

        Example:
            >>> import tempfile, torch, flowkern as fk
            >>> flow = fk.flows.MAF(3, transforms=2, hidden=(8,), context=4, embedding=torch.nn.Linear(2, 4))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     flow.save_pretrained(folder)
            ...     twin = fk.flows.MAF.from_pretrained(folder, embedding=torch.nn.Linear(2, 4))
            >>> torch.equal(twin.embedding.weight, flow.embedding.weight)
            True
        """
        from flowkern.pretrained import from_pretrained

        return from_pretrained(cls, source, revision, parts)


def _bring_buffers_along(model: nn.Module, _: Any) -> None:
    """Buffers that no state holds go where one was assigned to a model that was made without values."""
    like = next((p for p in model.parameters() if not p.is_meta), None)
    for module in model.modules():
        rest = module._non_persistent_buffers_set
        lost = {id(b) for name, b in module._buffers.items() if b is not None and b.is_meta and name in rest}
        if like is None or not lost:
            continue

        def found(t: Tensor, like: Tensor = like, lost: Collection[int] = lost) -> Tensor:
            dtype = like.dtype if t.is_floating_point() else t.dtype
            return torch.empty_like(t, dtype=dtype, device=like.device) if id(t) in lost else t

        module._apply(found, recurse=False)  # constants find their values, see flowkern.nn.constants


def parts_of(batch: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(x,) or (x, context) of what a data loader gives."""
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) not in (1, 2):
        raise ValueError(f"batch: expected x, (x,) or (x, context), got {len(parts)} parts")
    return parts
