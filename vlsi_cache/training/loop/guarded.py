"""``GuardedTrainer``: steps that go on without samples whose loss or gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from vlsi_cache.training.loop.groups import Group
from vlsi_cache.training.loop.guarding.guard import LossGuard
from vlsi_cache.training.loop.guarding.redoing import Redo, StepPasses, StepStart, are_finite
from vlsi_cache.training.loop.guarding.unsound import TOGETHER, UnsoundSamples
from vlsi_cache.training.loop.heldout import MeasuringTrainer
from vlsi_cache.training.loop.pieces import pieces_of, without_sync
from vlsi_cache.training.processes import gathered_numbers
from vlsi_cache.training.sharding import whole
from vlsi_cache.training.stage import Training

__all__ = ["GuardedTrainer"]

_NOT_SOUND: Final = -1
"""In place of a process's number of samples: its loss or gradient is not finite."""


class GuardedTrainer(MeasuringTrainer):
    """Runs the passes of each step, and looks at loss and gradient before the weights move.

    The look waits for the device once a step, and only in stages that guard their samples.

    Attributes:
        training: what the stage trains, on what.
        guard: keeps the loss of every step.
    """

    training: Training[Any]

    def __init__(self, **kwargs: Any) -> None:
        self.guard = LossGuard()
        self._start: StepStart | None = None
        self._count = torch.zeros(())
        self._norms: list[Tensor] = []
        self._last_loss: Tensor | None = None
        super().__init__(**kwargs)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Train on a micro-batch, piece by piece, and show its loss to the guard."""
        pieces = pieces_of(inputs)
        if self.unsound is not None:
            self._note_pieces(pieces, num_items_in_batch)
        loss = self._run(model, pieces, num_items_in_batch)
        self.guard.add(loss)
        return loss

    def _run(self, model: nn.Module, pieces: Sequence[dict[str, Any]], count: Tensor) -> Tensor:
        """Run passes whose gradients add up, and return the sum of their losses."""
        *pieces, last = pieces
        losses: list[Tensor] = []
        for piece in pieces:
            with without_sync(self.accelerator, model):
                losses.append(super().training_step(model, piece, count))
        losses.append(super().training_step(model, last, count))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _run_alone(
        self, model: nn.Module, pieces: Sequence[dict[str, Any]], count: Tensor
    ) -> Tensor:
        """Do the same, and keep DDP from exchanging the gradients."""
        with without_sync(self.accelerator, model):
            return self._run(model, pieces, count)

    def _note_pieces(self, pieces: Sequence[dict[str, Any]], count: Tensor) -> None:
        """Note what it takes to begin the step again."""
        if self._start is None:
            module = self._module()
            logged = self._tr_loss.clone()
            self._start = StepStart(module.batches_seen, module.observed(), logged)
            self._count = count
        self._start.pieces += [(piece["indices"], piece["weight"]) for piece in pieces]

    def _clip_grad_norm(self, model: Any) -> Any:
        rest = dict(self._module().named_parameters())
        for prefix, most in self.training.other_norms.items():
            own = [rest.pop(name) for name in list(rest) if name.startswith(prefix)]
            if any(value.grad is not None for value in own):
                most = most or math.inf  # measured, and not clipped
                norm = self._mixed_mesh_grad_norm(Group(own), most)  # type: ignore[no-untyped-call]
                self._norms.append(norm)
        clipped = Group(list(rest.values())) if self.training.other_norms else model
        return whole(super()._clip_grad_norm(clipped))  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm of the step's gradient, once the step is sound."""
        norm = whole(super()._get_grad_norm(model, grad_norm))  # type: ignore[no-untyped-call]
        if self._start is not None and self.unsound is not None:
            num_samples = self._count_sound(norm, self._start)
            if num_samples is None:
                norm = self._redo(model, self._start, self.unsound)
            else:
                self.unsound.count_sound_step(num_samples)
            self._start = None
        self._last_loss = self.guard.step_loss
        self.guard.end_step()
        return norm

    def _count_sound(self, norm: Tensor, start: StepStart) -> int | None:
        """Count the step's samples over all processes.

        Returns:
            Their number, or None where loss or gradient of the step are not finite in any process.
        """
        norms, self._norms = [norm, *self._norms], []
        loss, met = self.guard.step_loss, self._module().is_unsound()
        is_sound = are_finite(*norms, *([] if loss is None else [loss]))
        is_sound = is_sound and (met is None or not bool(met))
        if is_sound:
            self._module().find_problem()  # so that the next step begins without this one's
        counts = gathered_numbers(start.num_samples() if is_sound else _NOT_SOUND)
        if _NOT_SOUND in counts:
            return None
        # processes that share their batches have counted the same samples
        return counts[0] if self.training.shares_batches else sum(counts)

    def _redo(self, model: Any, start: StepStart, unsound: UnsoundSamples) -> Tensor:
        """Run the step again without the samples that spoil it, and return its gradient's norm.

        Raises:
            StageError: they are not to be left out, or most samples of many steps are.
        """
        passes = StepPasses(
            self._module(),
            lambda indices: self.training.collate([self.training.dataset[i] for i in indices]),
            partial(self._run, model),
            partial(self._run_alone, model),
            self.args.device,
            self.args.process_index,
        )
        redo = Redo(passes, start, self._count)
        reasons = redo.find_unsound()
        norm = self._run_again(model, redo, reasons)
        if norm is None:  # not finite in company: none of the others can be told from the rest
            reasons = {**dict.fromkeys(redo.samples, TOGETHER), **reasons}
            norm = self._run_again(model, redo, reasons)
        assert norm is not None  # without samples nothing can be unsound
        num_samples, step = len(redo.samples), self.state.global_step + 1
        if len(reasons) == num_samples and self.find_newly_broken():
            raise unsound.problem(step, reasons, num_samples)  # no later step can be sound
        unsound.leave_out(step, reasons, num_samples)
        loss = self.guard.step_loss
        if loss is None:
            # a step of no samples counts with the loss before it, so that the mean stays one
            loss = torch.zeros_like(start.logged) if self._last_loss is None else self._last_loss
            self.guard.add(loss)
        self._tr_loss.copy_(start.logged + loss)
        return norm

    def _run_again(self, model: Any, redo: Redo, unsound: Mapping[int, str]) -> Tensor | None:
        """Run the step without some samples; return the gradient's norm, or None if not sound."""
        self.guard.drop_step()
        loss = redo.run(unsound)
        if loss is None:
            return torch.zeros((), device=self.args.device)
        self.guard.add(loss)
        norm = self._clip_grad_norm(model) if self.args.max_grad_norm > 0 else None
        norm = whole(super()._get_grad_norm(model, norm))  # type: ignore[no-untyped-call]
        return None if self._count_sound(norm, redo.start) is None else norm
