"""A flow: transforms between data and the noise of a base distribution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flowkern._checks import check_float, check_generator, check_tensor, number, one_of, sizes, whole_number
from flowkern.config import configured
from flowkern.flows.base import INDEPENDENT, Base, StandardNormal, call_base, check_base, has_rsample, takes_context
from flowkern.flows.distribution import FlowDistribution
from flowkern.model import Model
from flowkern.nn import Compose, Standardize, Transform
from flowkern.nn.checks import has_hooks
from flowkern.nn.reversible import MEMORY, Memory


class Flow(Model):
    r"""log p(x | c) = log p_base(z) + log|det dz/dx| with z = transform(x, c).

    Args:
        transforms: from data to noise, the first one next to the data.
        base: any object with ``log_prob`` and ``rsample``, such as a torch distribution over events of ``noise_shape`` or
            another flow; the standard normal by default.
        embedding: module that is applied to every context first.
        memory: ``"full"`` keeps what the backward pass needs; with ``"reversible"`` each layer rebuilds its input from its
            output in the backward pass and runs again, so that a stack of any depth takes the memory of one layer. See
            :attr:`memory`.

    Shapes: x (..., *event_shape), context (..., context features); their batch shapes broadcast. ``event_shape`` and
    ``noise_shape`` are those of the transforms: (features,) in a flow of vectors.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = Flow([fk.nn.Standardize(torch.zeros(3), torch.ones(3)), fk.nn.MaskedAutoregressive(3, hidden=(8,))])
        >>> flow.log_prob(torch.randn(5, 3)).shape, flow.sample((2,)).shape
        (torch.Size([5]), torch.Size([2, 3]))
        >>> images = Flow([fk.nn.Reshape((1, 4, 4)), fk.nn.MaskedAutoregressive(16, hidden=(8,))])
        >>> images.log_prob(torch.randn(5, 1, 4, 4)).shape, images.sample((2,)).shape
        (torch.Size([5]), torch.Size([2, 1, 4, 4]))
    """

    circular: tuple[int, ...] = ()  # features that are angles, whose units nothing may change

    @configured
    def __init__(
        self,
        transforms: Iterable[Transform],
        base: Base | None = None,
        embedding: nn.Module | None = None,
        memory: Memory = "full",
    ) -> None:
        super().__init__()
        self.transform = Compose(transforms)
        self.features = self.transform.features
        self.event_shape, self.noise_shape = self.transform.event_shape, self.transform.noise_shape
        self.base = StandardNormal(self.noise_shape) if base is None else base
        check_base(self.base, self.noise_shape)
        if embedding is not None and not callable(embedding):
            raise TypeError(f"embedding: expected a torch.nn.Module, got {type(embedding).__name__}")
        self.embedding = embedding
        self.memory = memory

    @property
    def memory(self) -> Memory:
        """What a pass keeps for its gradient: ``"full"`` or ``"reversible"``; can be set at any time.

        Gradients of the two are the same to rounding. A layer that loses too much on the way back keeps its input instead
        (:attr:`checkpointed` and a warning say which). A reversible pass replays autocast and random numbers, such as those
        of dropout, and counts running statistics once; it has no second derivatives. Between the pass and its gradient the
        parameters may not change. Under torch.compile of the whole flow and torch.func it is ``"full"``.

        References:
            The Reversible Residual Network: Backpropagation Without Storing Activations (Gomez et al., 2017), section 3.
        """
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        one_of("memory", memory, MEMORY)
        self._memory = memory
        for module in self.transform.modules():
            if isinstance(module, Compose):
                module.memory = memory
        if "memory" in getattr(self, "config", ()):
            self.config["memory"] = memory

    @property
    def checkpointed(self) -> list[str]:
        """Names of the layers that keep their input under ``memory="reversible"``, as ``named_modules`` has them."""
        stacks = [(name, module) for name, module in self.named_modules() if isinstance(module, Compose)]
        return [f"{name}.transforms.{i}" for name, stack in stacks for i in sorted(stack.guard.kept)]

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        return self.transform.conditional or self.embedding is not None or takes_context(self.base, self.base.log_prob)

    @property
    def has_rsample(self) -> bool:
        """Whether samples can carry gradients: where those of the base do."""
        return has_rsample(self.base)

    # -- density ----------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats, with the batch's shape."""
        embedded = self._embed(context)
        if self._has_standard_normal:
            log_prob = self.transform.run(x, embedded, normal="output")[1]
        else:
            z, log_det = self.transform(x, embedded)
            log_prob = self._base_log_prob(z, embedded) + log_det
        return self._show_context(log_prob, context, embedded)

    @property
    def _has_standard_normal(self) -> bool:
        """Whether the transforms may take the base's density along in their own call, past hooks on the modules."""
        base, transform = self._modules.get("base"), self._modules["transform"]  # attributes take nn.Module's slow look-up
        return type(base) is StandardNormal and not has_hooks(transform) and not has_hooks(base)  # type: ignore[arg-type]

    def _base_log_prob(self, z: Tensor, embedded: Tensor | None) -> Tensor:
        log_prob = call_base(self.base, self.base.log_prob, z, embedded)
        batch = z.shape[: -len(self.noise_shape)]
        if log_prob.shape != batch:
            raise ValueError(f"base: expected log_prob of shape {tuple(batch)}, got {tuple(log_prob.shape)}; {INDEPENDENT}")
        return log_prob

    def _show_context(self, log_det: Tensor, context: Tensor | None, embedded: Tensor | None) -> Tensor:
        """A context that is not finite shows in its row, also where the embedding hides it."""
        if context is None or embedded is None or self.embedding is None:
            return log_det
        rows = context.reshape(*embedded.shape[:-1], -1)
        return log_det + (rows - rows).detach().sum(-1)

    # -- samples ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Samples (*shape, *event_shape), or (*shape, *context batch, *event_shape), without a gradient.

        Args:
            shape: sample shape, as in torch.distributions.
            context: conditions (*batch, context features).
            generator: source of the noise. torch.compile(fullgraph=True) takes none.
            chunk_size: samples taken through the transforms at once, for each row of the context; bounds the memory of the
                intermediate results. The noise is drawn before, whole, so that the samples are the same for every chunk
                size, up to rounding; only a base that draws feature by feature (:class:`flowkern.models.MADE`) is itself
                sampled in chunks, and gives other samples.
            temperature: factor of the noise, at least 0; below 1 samples are nearer to the modes. With the learned priors of
                :class:`Glow` too it is the factor of their deviations.
        """
        size = sizes("shape", shape)
        temperature = number("temperature", temperature, least=0)
        if self.circular and temperature != 1:
            raise ValueError(f"temperature: the noise of circular features is uniform and has none, got {temperature!r}")
        if chunk_size is not None:
            chunk_size = whole_number("chunk_size", chunk_size, 1)
        noise, embedded = self._noise(size, context, generator, "sample", chunk_size)
        noise = noise if temperature == 1 else noise * temperature
        if chunk_size is None:
            return self.transform.inverse(noise, embedded)[0]
        rows = noise.reshape(size.numel(), *noise.shape[len(size) :])
        batch = noise.shape[len(size) : noise.dim() - len(self.noise_shape)]
        x = rows.new_empty((len(rows), *batch, *self.event_shape))
        for part, place in zip(rows.split(chunk_size), x.split(chunk_size), strict=True):
            place.copy_(self.transform.inverse(part, embedded)[0])
        return x.reshape(*size, *batch, *self.event_shape)

    def rsample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples that carry gradients to every parameter and to the context."""
        return self.transform.inverse(*self._noise(sizes("shape", shape), context, generator, "rsample"))[0]

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities from one pass; what variational inference needs."""
        z, embedded = self._noise(sizes("shape", shape), context, generator, "rsample")
        if self._has_standard_normal:
            x, log_prob = self.transform.run(z, embedded, inverse=True, normal="input")
        else:
            x, log_det = self.transform.inverse(z, embedded)
            log_prob = self._base_log_prob(z, embedded) - log_det
        return x, self._show_context(log_prob, context, embedded)

    def _noise(
        self,
        size: torch.Size,
        context: Tensor | None,
        generator: torch.Generator | None,
        method: str,
        chunk_size: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Samples of the base, and the context after the embedding."""
        check_generator(generator)
        if method == "rsample" and not self.has_rsample:
            raise NotImplementedError(f"the base {type(self.base).__name__} has no rsample: its samples carry no gradient")
        embedded = self._embed(context)
        batch = torch.Size() if embedded is None else embedded.shape[:-1]
        draw = getattr(self.base, method, None) or self.base.rsample
        # A base that takes no context draws for every row of it.
        asked = size if takes_context(self.base, draw) else size + batch
        z = call_base(self.base, draw, asked, embedded, generator, chunk_size)
        expected = (*size, *batch, *self.noise_shape)
        if z.shape != expected:
            raise ValueError(f"base: expected samples of shape {expected}, got {tuple(z.shape)}")
        return z, embedded

    # -- the rest ---------------------------------------------------------------------------------------------------

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The flow, given a context, as a torch.distributions.Distribution."""
        return FlowDistribution(self, context)

    def standardize(self, x: Tensor) -> None:
        """Puts a :class:`flowkern.nn.Standardize` layer for the rows of x next to the data, unless one is there.

        Circular features keep their units. Densities and samples are in the units of x from then on. The layer becomes part of
        ``config``.

        Args:
            x: (n, *event_shape), n of at least 2; no feature may be constant.

        Raises:
            TypeError: for a flow whose constructor has no place for the layer.

        Example:
            >>> import torch, flowkern as fk
            >>> flow = fk.flows.MAF(2, transforms=1, hidden=(8,))
            >>> flow.standardize(100 + 10 * torch.randn(50, 2))
            >>> flow.config["standardize"]
            Standardize()
        """
        first, *_ = layers = self.transform.transforms
        if isinstance(first, Standardize):
            return
        place = next((name for name in ("standardize", "transforms") if name in getattr(self, "config", ())), None)
        if place is None:
            raise TypeError(f"{type(self).__name__} takes neither standardize nor transforms: there is no place for the layer")
        check_float("x", x)
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"x: expected shape (n, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}")
        layer = Standardize.fit(x, self.circular)
        self.transform = Compose([layer, *layers])
        self.memory = self.memory
        self.config[place] = layer if place == "standardize" else [layer, *self.config[place]]

    @torch.no_grad()
    def calibrate(self, x: Tensor, context: Tensor | None = None, batch_size: int = 4096) -> None:
        """Sets the statistics of every BatchNorm to those of a whole data set x (n, *event_shape), for evaluation.

        The layers see the data in order, each through the ones before it in evaluation mode. The context has one row, or
        one for each of x.
        """
        check_float("x", x)
        if x.shape[1:] != self.event_shape or len(x) == 0:
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(f"x: expected shape (n, {expected}) with at least one row, got {tuple(x.shape)}")
        batch_size = whole_number("batch_size", batch_size, 1)
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        try:
            embedded = self._embed(context)
            if embedded is not None:
                if embedded.shape[:-1] not in ((), (1,), (len(x),)):
                    raise ValueError(f"context: expected one row, or {len(x)} like x, got shape {tuple(embedded.shape)}")
                embedded = embedded.expand(len(x), embedded.shape[-1])
            z = self.transform.calibrate(x, embedded, batch_size)
            if isinstance(self.base, Flow):
                self.base.calibrate(z, embedded if self.base.conditional else None, batch_size)
        finally:
            for module, mode in modes:
                module.training = mode

    def _embed(self, context: Tensor | None) -> Tensor | None:
        if context is None:
            return None
        check_tensor("context", context)
        if not self.conditional:
            raise ValueError(f"context: this flow takes none, got shape {tuple(context.shape)}")
        return context if self.embedding is None else self.embedding(context)
