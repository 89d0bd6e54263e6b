"""Probability density distillation: a Parallel WaveNet learns from a WaveNet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import check_like, number, whole_number
from flowkern.config import configured
from flowkern.model import Model, parts_of
from flowkern.models.audio import Given
from flowkern.models.audio_outputs import Gaussian, MuLaw
from flowkern.models.parallel_wavenet import ParallelWaveNet, Synthesis
from flowkern.models.wavenet import WaveNet
from flowkern.nn.heads import uniform
from flowkern.nn.spectra import power_spectrum

KL_LOG_STD_MIN = -6.0  # ClariNet's
REGULARISATION = 4.0


class Distillation(Model):
    r"""A student as a model whose loss is what its teacher thinks of it: any loop that trains a model trains the student.

    For a batch of audio y with its conditions c, ``loss`` makes audio x of noise and the same conditions, and is, in nats per
    sample, KL(student || teacher) + power ||phi(x) - phi(y)||^2 - contrastive KL(student(c) || teacher(c')):

    - The entropy of a sample given the noise before it is known. Its cross-entropy with the teacher's conditional, which one
      pass of the teacher over x gives for all samples, is the mean over ``draws`` fresh values of the sample, spread evenly.
    - Between two Gaussians the divergence is known too. As in ClariNet log-deviations below -6 count as this, and 4 times the
      squared difference of the log-deviations is added, a term of its own.
    - phi is the power spectrum averaged over time, see :func:`flowkern.nn.spectra.power_spectrum`; the squares are averaged
      over its bins.
    - c' are the conditions of another row of the batch. A batch of one row has none, and no such term.

    Densities are those of real numbers: of the components of a mixture, log-scales below -7 count as this. The teacher is
    frozen: it is in evaluation mode, and its parameters, which require no gradient any more, are none of this model's; neither
    are they in its state. In evaluation mode noise and draws are the same in every call.

    Args:
        student: trained in place; ``log_prob``, ``sample`` and ``save_pretrained`` are its own.
        teacher: with the same rate and conditions, and a mixture of logistics or a Gaussian as output.
        draws: values of each sample by which its cross-entropy is estimated.
        power: weight of the power loss.
        contrastive: weight of the contrastive term, 0.3 in the paper; it needs a condition.

    Raises:
        TypeError, ValueError: for models that do not fit each other.

    Example:
        >>> import torch, flowkern as fk
        >>> teacher = fk.models.WaveNet(300, "logistics", layers=4, residual=8, skip=8)
        >>> student = fk.models.ParallelWaveNet(300, layers=(2, 2), residual=8, skip=8)
        >>> distillation = fk.models.Distillation(student, teacher)
        >>> terms = distillation.loss(0.1 * torch.randn(2, 300))
        >>> list(terms)
        ['loss', 'kl', 'cross_entropy', 'entropy', 'power']
        >>> terms["loss"].backward()

    References:
        Parallel WaveNet: Fast High-Fidelity Speech Synthesis (van den Oord et al., 2018), section 4; ClariNet (Ping et al.,
        2019), section 3.3.
    """

    teacher: WaveNet

    @configured
    def __init__(
        self, student: ParallelWaveNet, teacher: WaveNet, draws: int = 10, power: float = 1.0, contrastive: float = 0.0
    ) -> None:
        super().__init__()
        _check_pair(student, teacher)
        power, contrastive = number("power", power, least=0), number("contrastive", contrastive, least=0)
        if contrastive and not (student.context or student.mels):
            raise ValueError("contrastive: the term compares conditions; these models have neither a context nor mels")
        self.student, self.event_shape = student, student.event_shape
        self.draws, self.power, self.contrastive = whole_number("draws", draws, 1), power, contrastive
        # Not registered: what is frozen is neither trained, saved, averaged nor sharded.
        self.__dict__["teacher"] = teacher.eval().requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        return self.student.conditional

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the student, see :class:`ParallelWaveNet`."""
        return self.student.log_prob(x, context)

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None, **options: Any) -> Tensor:
        """Samples of the student, see :meth:`flowkern.models.audio.AudioModel.sample`."""
        return self.student.sample(shape, context, **options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Saves the student, see :meth:`flowkern.model.Model.save_pretrained`."""
        self.student.save_pretrained(folder)

    # -- the loss ---------------------------------------------------------------------------------------------------

    def loss(self, batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Means over the batch and its samples: ``"loss"``, and the terms that it is made of before their weights.

        Args:
            batch: audio (batch, time), or (audio,) or (audio, context).
        """
        y, *context = parts_of(batch)
        local = self.student.log_mel(y) if self.student.mels else None
        y, given, _ = self.student._rows("x", y, context[0] if context else None, local)
        generator = None if self.training else torch.Generator(y.device).manual_seed(0)
        made = self.student.synthesize(self.student.noise_of(len(y), y.shape[1], generator), *given)
        fresh = None if self._closed else self._fresh(made, generator)
        terms = self._divergence(made, given, fresh)
        loss = terms["kl"] + REGULARISATION * terms.get("regularisation", 0.0)
        if self.power:
            terms["power"] = (power_spectrum(made.x) - power_spectrum(y)).square().mean()
            loss = loss + self.power * terms["power"]
        if self.contrastive and len(y) > 1:
            others = Given(*(None if c is None else c.roll(1, 0) for c in given))
            terms["contrastive"] = self._divergence(made, others, fresh)["kl"]
            loss = loss - self.contrastive * terms["contrastive"]
        return {"loss": loss, **terms}

    @property
    def _closed(self) -> bool:
        """Whether the divergence is one between Gaussians, which needs no draws."""
        return isinstance(self.teacher.output, Gaussian) and self.student.noise == "gaussian"

    def _fresh(self, made: Synthesis, generator: torch.Generator | None) -> Tensor:
        """Values (draws, rows, time) of each sample given the noise before it, one in each of as many equal parts."""
        u = uniform((self.draws, *made.mean.shape), made.mean, generator)
        part = torch.arange(self.draws, device=u.device).reshape(-1, 1, 1)
        u = ((part + u) / self.draws).clamp(max=1 - torch.finfo(u.dtype).eps)
        return made.mean + torch.exp(made.log_scale) * self.student.law.quantile(u)

    def _divergence(self, made: Synthesis, given: Given, fresh: Tensor | None) -> dict[str, Tensor]:
        """KL(student || teacher) under the teacher's conditions, in nats per sample, and what it is made of."""
        parameters, output = self.teacher._parameters_of(made.x, given), self.teacher.output
        assert not isinstance(output, MuLaw)
        if fresh is None:
            assert isinstance(output, Gaussian)
            return _between_gaussians(made, *output.mean_and_log_std(parameters))
        cross_entropy = -output.log_density(fresh, parameters).mean()
        entropy = self.student.entropy_of(made).mean()
        return {"kl": cross_entropy - entropy, "cross_entropy": cross_entropy, "entropy": entropy}


def _between_gaussians(made: Synthesis, mean: Tensor, log_std: Tensor) -> dict[str, Tensor]:
    """KL(student || teacher) of each sample in closed form, and the squared difference of the log-deviations."""
    difference = log_std - made.log_scale
    of_teacher, of_student = log_std.clamp(min=KL_LOG_STD_MIN), made.log_scale.clamp(min=KL_LOG_STD_MIN)
    ratio = torch.exp(2 * (of_student - of_teacher))
    shift = ((made.mean - mean) * torch.exp(-of_teacher)).square()
    kl = of_teacher - of_student + 0.5 * (ratio - 1 + shift)
    return {"kl": kl.mean(), "regularisation": difference.square().mean()}


def _check_pair(student: Any, teacher: Any) -> None:
    """Raises for what cannot learn from, or teach, the other."""
    for name, model, cls in (("student", student, ParallelWaveNet), ("teacher", teacher, WaveNet)):
        if not isinstance(model, cls):
            raise TypeError(f"{name}: expected a {cls.__name__}, got {type(model).__name__}")
    if isinstance(teacher.output, MuLaw):
        raise ValueError(
            "teacher: expected an output with a density, logistics or gaussian, got categorical: classes have no gradient by "
            "which a student could learn; train the teacher with output=logistics"
        )
    for name in ("rate", "context", "mels"):
        wanted, got = getattr(teacher, name), getattr(student, name)
        if wanted != got:
            raise ValueError(f"student: expected {name} {wanted} like the teacher, got {got}")
    if teacher.mels and teacher.hop != student.hop:
        raise ValueError(f"student: expected frames of {teacher.hop} samples like the teacher, got {student.hop}")
    check_like("student", student._like, teacher._like, "the teacher")
