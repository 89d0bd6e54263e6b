"""The loop that trains every model: torch's engines, and what a user expects around them."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowkern.model import Model
from flowkern.nn import ActNorm, BatchNorm
from flowkern.training.batches import CHOSEN, INSIDE, Batch, Batches, Encoder, Rows, seeded
from flowkern.training.checkpoints import Checkpoints
from flowkern.training.distributed import Processes, synchronise_batch_norm
from flowkern.training.errors import TrainingError
from flowkern.training.history import History
from flowkern.training.settings import Settings

LOOK = 0.2  # seconds between looks at the losses (for which a GPU must wait), the signals and the clock
CALIBRATED = 10_000  # rows that statistics for evaluation are taken from
ENDS = ("epochs", "patience")  # of a run that is not to be continued
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

Watch = Callable[[History, float], None]


class Loss(nn.Module):
    """A model's loss as a module's forward, which is what torch's wrappers for several processes need."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        """What training minimises, a mean over the batch."""
        return self.model.loss(batch)["loss"]


class Training:
    """A training run: made, perhaps continued from a checkpoint, then run once.

    A step costs what its arithmetic costs: batches are cut from blocks, and losses are read every fifth of a second.

    Args:
        model: trained in place; afterwards it is in evaluation mode, on the processes' device, with the weights of the epoch
            that was best in validation.
        train, validation: rows in the data's units.
        encoding: to the model's units, or None where they are the same.
        settings: how.
        processes: this one among the others.
        checkpoints: where to write some, or None.
        watch: called with the history and the fraction of the epoch that is done, every 0.2 s and after each epoch.
    """

    def __init__(
        self,
        model: Model,
        train: Rows,
        validation: Rows,
        encoding: Encoder | None,
        settings: Settings,
        processes: Processes,
        checkpoints: Checkpoints | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.settings, self.processes, self.checkpoints, self.watch = settings, processes, checkpoints, watch
        self.model = model.to(processes.device)
        size = settings.batch_size * processes.count
        self.train, self.validation = (
            Batches(rows, encoding, size, model.event_shape, settings.seed, processes) for rows in (train, validation)
        )
        self._initialise()
        self.bare = Loss(model)
        self.loss = self._parallel()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        adam = OPTIMIZERS[settings.optimizer]
        self.optimizer = adam(self.parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
        self.average: AveragedModel | None = None
        if settings.average:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
        self.calibrates = any(isinstance(m, BatchNorm) for m in model.modules())
        self.history = History()
        self.best = _copied(self.bare)
        self.step = self.batch = 0  # steps taken in all; batches of this epoch
        self.total, self.rows = 0.0, 0  # of this epoch: the sum of the losses of its rows so far, and their number
        self.pending: list[tuple[Tensor, int]] = []  # losses that were not looked at yet, and their batches' rows
        self.look_every = 1  # steps
        self.began = self.saved = self.looked = time.monotonic()
        self.signal = 0
        torch.manual_seed(seeded(settings.seed, INSIDE, processes.rank).initial_seed())  # of noise inside of models

    @torch.no_grad()
    def _initialise(self) -> None:
        """Sets the layers that take their parameters from a first batch, from the same one in every process."""
        waiting = [m for m in self.model.modules() if isinstance(m, ActNorm) and m.waits]
        if not waiting:
            return
        self.model.eval()
        for layer in waiting:
            layer.train()
        order = torch.randperm(len(self.train.rows), generator=seeded(self.settings.seed, 0))
        self.model.loss(self.train.chosen(order[: self.train.batch_size]))

    def _parallel(self) -> nn.Module:
        """The loss, shared by the processes as the strategy says."""
        if self.processes.count == 1:
            return self.bare
        synchronise_batch_norm(self.model, True)
        kind = self.processes.device.type
        if self.settings.strategy == "fsdp":
            fully_shard(self.bare, mesh=init_device_mesh(kind, (self.processes.count,)))
            return self.bare
        devices = [self.processes.device] if kind == "cuda" else None
        # Buffers are the same everywhere: what changes them is synchronised.
        known = signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
        options: dict[str, Any] = {name: False}
        return DistributedDataParallel(self.bare, device_ids=devices, **options)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> History:
        """Trains until the epochs or the patience end, or a signal comes: after Ctrl-C or SIGTERM a checkpoint is written.

        Raises:
            TrainingError: for a loss that is not finite, or a checkpoint that cannot be written. The weights are then those
                of the best epoch so far, or those that training began with.
        """
        try:
            with self._signals():
                if self.step == 0:
                    self.save()  # a full disk or a read-only folder shows before the work
                self.looked = time.monotonic()
                while not self.history.ended:
                    self._epoch()
                if self.history.ended in ENDS:
                    self.save()  # what is made of the model may take long, and be ended too
        except BaseException:
            self.bare.load_state_dict(self.best)
            raise
        finally:
            synchronise_batch_norm(self.model.eval(), False)
        if self.history.best >= 0:
            self.bare.load_state_dict(self.best)
        return self.history

    def _epoch(self) -> None:
        self.model.train()
        for batch in self.train.epoch(len(self.history.train), self.batch):
            self._step(batch)
            if len(self.pending) >= self.look_every:
                self._look()
                if self.history.ended:
                    return
        self._look()
        if not self.history.ended:
            self._end_epoch()

    def _step(self, batch: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        for parameter in self.parameters:
            parameter.grad = None
        self.model.at_step(self.step)
        loss = self._backward(batch)
        if self.settings.gradient_clip:
            self._clip()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.pending.append((loss, batch.rows))
        self.step += 1
        self.batch += 1

    def _clip(self) -> None:
        """torch's clip_grad_norm_; on a CPU, which need not wait for the norm, gradients are not multiplied by 1."""
        limit = self.settings.gradient_clip
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if type(norm) is not Tensor or norm.is_cuda or norm > limit:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)

    def _rate(self, step: int) -> float:
        return self.settings.rate(step, self.settings.epochs * len(self.train))

    def _backward(self, batch: Batch) -> Tensor:
        """The loss of a batch, weighted among the processes; its gradient is added to the parameters'."""
        rows = len(batch.parts[0])
        # As many parts in every process, also where one has a row less: each part is a step of all of them.
        count = min(self.settings.accumulate, max(1, batch.rows // self.processes.count))
        if count == 1:
            return self._backward_part(batch.parts, batch.weight)
        losses = []
        for i, part in enumerate(zip(*(t.tensor_split(count) for t in batch.parts), strict=True)):
            with nullcontext() if i == count - 1 else self._unsynchronised():
                losses.append(self._backward_part(part, batch.weight * len(part[0]) / rows))
        return torch.stack(losses).sum()

    def _backward_part(self, part: tuple[Tensor, ...], weight: float) -> Tensor:
        with self._autocast():
            loss = self.loss(part)
        loss = loss if weight == 1 else weight * loss
        loss.backward()
        return loss.detach()

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Gradients stay in their process until the last part of a batch; fully_shard adds them up shard by shard."""
        return self.loss.no_sync() if isinstance(self.loss, DistributedDataParallel) else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, getattr(torch, self.settings.precision))

    def _look(self) -> None:
        """Reads the losses since the last look, the signals and the clock, in all processes after the same step."""
        steps = len(self.pending)
        if steps:
            self._read_losses()
        now = time.monotonic()
        # The clock of the first process decides for all.
        clock = (steps * LOOK / max(now - self.looked, 1e-6), now - self.saved) if self.processes.first else (0.0, 0.0)
        wanted, unsaved, signalled = self.processes.largest(*clock, self.signal)
        self.look_every = max(1, min(int(wanted), 2 * self.look_every, 1000))
        if signalled:
            self.history.ended = signal.Signals(int(signalled)).name
        if signalled or unsaved > 60 * self.settings.checkpoint_minutes:
            self.save()
        self._report(self.batch / len(self.train))
        self.looked = time.monotonic()

    def _read_losses(self) -> None:
        losses = self.processes.mean(torch.stack([loss for loss, _ in self.pending]).double()).tolist()
        for i, (loss, (_, rows)) in enumerate(zip(losses, self.pending, strict=True), 1 - len(losses)):
            if not math.isfinite(loss):
                place = f"epoch {len(self.history.train) + 1}, batch {self.batch + i} of {len(self.train)}"
                self._fail(f"the loss is {loss} at step {self.step + i} ({place})")
            self.total += loss * rows
            self.rows += rows
        self.pending.clear()

    def _fail(self, what: str) -> None:
        raise TrainingError(what + ("" if self.checkpoints is None else self.checkpoints.kept()))

    def _end_epoch(self) -> None:
        history, settings, epoch = self.history, self.settings, len(self.history.train)
        validation = self._validate()
        if not math.isfinite(validation):
            self._fail(f"the validation loss is {validation} after step {self.step} (epoch {epoch + 1})")
        if history.best < 0 or validation < history.validation[history.best]:
            history.best = epoch
            self.best = _copied(self._validated())
        history.train.append(self.total / self.rows)
        history.validation.append(validation)
        history.learning_rate.append(self._rate(self.step - 1))
        history.seconds.append(time.monotonic() - self.began)
        history.steps.append(self.step)
        self.total, self.rows, self.batch = 0.0, 0, 0
        if epoch + 1 == settings.epochs:
            history.ended = "epochs"
        elif settings.patience and epoch - history.best >= settings.patience:
            history.ended = "patience"
        self._report(0.0)
        self.looked = time.monotonic()

    def _report(self, part: float) -> None:
        if self.watch is not None and self.processes.first:
            self.watch(self.history, part)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals end the run at the next look; a second Ctrl-C ends it at once. Only the main thread gets any.

        SIGTERM ends the program where there are no checkpoints for it to leave.
        """

        def note(number: int, frame: Any) -> None:
            if self.signal == signal.SIGINT == number:
                raise KeyboardInterrupt
            self.signal = number

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT] if self.checkpoints is None else [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- validation -------------------------------------------------------------------------------------------------

    def _validated(self) -> Any:
        """The loss of the weights that are validated and kept: the average's, where there is one."""
        return self.bare if self.average is None else Loss(cast("Model", self.average.module))

    @torch.no_grad()
    def _validate(self) -> float:
        """The mean loss of the validation rows, over all processes."""
        loss = self._validated().eval()
        if self.calibrates:
            self._calibrate(loss)
        total = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        with self._autocast():
            for batch in self.validation.in_order():
                total += loss(batch.parts).double() * (batch.weight * batch.rows)
        return float(self.processes.mean(total)) / len(self.validation.rows)

    def _calibrate(self, loss: Any) -> None:
        """Takes batch norm's statistics from training rows: the running ones lag behind the weights."""
        index = torch.randperm(len(self.train.rows), generator=seeded(self.settings.seed, CHOSEN))[:CALIBRATED]
        sharded = isinstance(loss, FSDPModule)
        if sharded:
            loss.unshard()
        loss.model.calibrate(*self.train.chosen(index))
        if sharded:
            loss.reshard()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint, where there is a place for it.

        Raises:
            TrainingError: if it cannot be written, or if a gradient has just made weights that are not finite.
        """
        if self.checkpoints is None:
            return
        own = [getattr(p, "to_local", lambda p=p: p)() for p in self.parameters]  # of shards this process's
        if self.processes.largest(float(not all(p.isfinite().all() for p in own)))[0]:
            self._fail(f"the weights are not finite after step {self.step}")
        self.checkpoints.save(self.step, self._state(random=True), self._progress())
        self.saved = time.monotonic()

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "batch": self.batch,
            "total": self.total,
            "rows": self.rows,
            "batch_size": self.train.batch_size,
            "processes": self.processes.count,
            "device": self.processes.device.type,
            "seconds": time.monotonic() - self.began,
            "history": asdict(self.history if self.history.ended in ENDS else replace(self.history, ended="")),
        }

    def resume(self, path: Path) -> None:
        """Continues the run of a checkpoint: the losses are those of an unbroken one.

        The batches stay what they were, also where the number of processes is another.

        Raises:
            TrainingError: for a checkpoint of another model, or a damaged one.
        """
        assert self.checkpoints is not None
        progress = self.checkpoints.progress(path, self._progress().keys())
        same = progress["device"] == self.processes.device.type and self.processes.rank < progress["processes"]
        state = self._state(random=same)
        self.checkpoints.load(path, state)
        self.bare.load_state_dict(state["model"])
        set_optimizer_state_dict(self.bare, self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if "random" in state:
            self._set_random_state(state["random"][str(self.processes.rank)])
        self.best = state["best"]
        self.step, self.batch = progress["step"], progress["batch"]
        self.total, self.rows = progress["total"], progress["rows"]
        self.train.batch_size = self.validation.batch_size = progress["batch_size"]
        self.history = History(**progress["history"])
        self.began = time.monotonic() - progress["seconds"]

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.processes.device)

    def _state(self, random: bool) -> dict[str, Any]:
        """All tensors that continuing takes; the state of the random numbers where it is asked for."""
        state = {
            "model": self.bare.state_dict(),
            "optimizer": self._optimizer_state(),
            "best": self.best,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if random:
            state["random"] = {str(self.processes.rank): self._random_state()}
        return state

    def _optimizer_state(self) -> Any:
        state = get_optimizer_state_dict(self.bare, self.optimizer)
        if self.step == 0:  # torch made it by a step of no length, which counts, and which weight decay leaves its mark on
            for of_parameter in self.optimizer.state.values():
                for t in of_parameter.values():
                    t.zero_()
        return state

    def _random_state(self) -> dict[str, Tensor]:
        found = {"cpu": torch.get_rng_state()}
        if self.processes.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.processes.device)
        return found


def _copied(module: nn.Module) -> dict[str, Any]:
    return {name: copy.deepcopy(t.detach()) for name, t in module.state_dict().items()}
