"""``SavingTrainer``: the Trainer's checkpoints, of what trains and of nothing else.

Weights may be sharded. Checkpoints are whole and alike all the same, so any number of processes can
go on from them, sharded or not.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from vlsi_cache.errors import StageError, counted
from vlsi_cache.files import share_weights
from vlsi_cache.training.folders.checkpoints import whole_checkpoint
from vlsi_cache.training.folders.writing import plain_read_errors
from vlsi_cache.training.loop.guarding.guard import LossGuard
from vlsi_cache.training.loop.guarding.unsound import UnsoundSamples
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import gathered, raise_together
from vlsi_cache.training.sharding import like, reshard, whole_state

__all__ = ["MEND_DIVERGED", "SavingTrainer"]

logger = logging.getLogger(__name__)

MEND_DIVERGED = "Delete this folder, then lower the stage's learning_rate or raise warmup_steps"
_WEIGHTS = "model.safetensors"
_OPTIMIZER = "optimizer.pt"
_SCHEDULER = "scheduler.pt"
_BATCHES_SEEN = "batches_seen"
_UNSOUND = "unsound_samples"
_LOSSES = "losses"


class SavingTrainer(Trainer):
    """Saves and restores trainable parameters only: a frozen 72B backbone is not written again.

    Attributes:
        sharded: whether the weights are sharded.
        best: the checkpoint that is kept beside the last ones, if there is one.
        unsound: keeps account of samples that are not sound; None in a stage that does not guard.
        guard: keeps the loss of every step.
    """

    guard: LossGuard
    sharded: bool
    best: Path | None = None
    unsound: UnsoundSamples | None = None
    _weights: dict[str, Tensor]
    _optimizer_state: dict[str, Any]
    _broken: dict[str, int]

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.sharded:
            super()._move_model_to_device(model, device)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Average the gradients of scalars, which are too small to be sharded."""
        for parameter in self._trainable().values():
            if parameter.ndim == 0:
                parameter.register_post_accumulate_grad_hook(self._average)

    def _average(self, parameter: Tensor) -> None:
        if self.accelerator.sync_gradients:
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        # All take part in this. So it comes first: one that cannot write leaves nobody waiting.
        self._collect_state()
        problem: StageError | None = None
        try:
            # the Trainer's own limit would also delete what the user put there
            folder = Path(str(self.args.output_dir))
            with whole_checkpoint(folder, self.state.global_step, self.best):
                super()._save_checkpoint(model, trial)
        except StageError as error:
            problem = error
        self._weights, self._optimizer_state = {}, {}
        raise_together(problem)

    def _collect_state(self) -> None:
        """Put the slices of sharded weights and of the optimizer's state together."""
        keep = self.args.should_save
        self._weights = {
            name: whole_state(parameter.detach(), keep=keep)
            for name, parameter in self._trainable().items()
        }
        if self.sharded:
            assert self.optimizer is not None
            self._optimizer_state = whole_state(self.optimizer.state_dict(), keep=keep)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self._optimizer_state, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with plain_read_errors(checkpoint):
            if self.sharded and checkpoint is not None:
                self._load_slices(Path(checkpoint))
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._set_rates(int(checkpoint.rsplit("-", 1)[1]))

    def _set_rates(self, step: int) -> None:
        """Go on with the rates of a step, if the checkpoint's was counted in another way."""
        scheduler, optimizer = self.lr_scheduler, self.optimizer
        if not isinstance(scheduler, LambdaLR) or optimizer is None or scheduler.last_epoch == step:
            return
        scheduler.last_epoch = step
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, (peak, factor) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = peak * factor(step)

    def _load_slices(self, checkpoint: Path) -> None:
        """Read this process's slices of the optimizer's state."""
        state = torch.load(
            checkpoint / _OPTIMIZER, map_location="cpu", mmap=True, weights_only=True
        )
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        assert optimizer is not None
        assert scheduler is not None
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        for index, values in state["state"].items():
            values.update({name: like(value, parameters[index]) for name, value in values.items()})
        optimizer.load_state_dict(state)
        scheduler.load_state_dict(torch.load(checkpoint / _SCHEDULER, weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with plain_read_errors(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self._weights.items()}
        state[_BATCHES_SEEN] = torch.tensor(self._module().batches_seen)
        state[_LOSSES] = self.guard.written()
        if self.unsound is not None:
            state[_UNSOUND] = torch.tensor(list(self.unsound.written()), dtype=torch.uint8)
        save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
        share_weights(folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        trainable = self._trainable()
        with (
            plain_read_errors(resume_from_checkpoint),
            safe_open(Path(resume_from_checkpoint) / _WEIGHTS, "pt") as saved,
        ):
            names = set(saved.keys()) - {_BATCHES_SEEN, _UNSOUND, _LOSSES}
            if names != trainable.keys():
                raise StageError(
                    "checkpoint holds other parameters than this stage trains",
                    where=resume_from_checkpoint,
                    mend="Delete the stage's folder to train it again",
                )
            self._module().batches_seen = int(saved.get_tensor(_BATCHES_SEEN))
            reshard(self._module())  # what is whole would not keep what is copied
            with torch.no_grad():
                for name, parameter in trainable.items():
                    parameter.copy_(like(saved.get_tensor(name), parameter))

    def resume_account(self, checkpoint: Path | None) -> None:
        """Go on with a checkpoint's account of losses, and of samples that are not sound.

        The best checkpoint's weights may be loaded later. Its account is an earlier one.
        """
        if checkpoint is None:
            return
        with plain_read_errors(str(checkpoint)), safe_open(checkpoint / _WEIGHTS, "pt") as saved:
            names = saved.keys()
            if _LOSSES in names:
                self.guard.resume(saved.get_tensor(_LOSSES))
            if self.unsound is not None and _UNSOUND in names:
                self.unsound.resume(bytes(saved.get_tensor(_UNSOUND).tolist()))

    def _trainable(self) -> dict[str, nn.Parameter]:
        parameters = self._module().named_parameters()
        return {name: value for name, value in parameters if value.requires_grad}

    def _module(self) -> StageModule:
        module = self.accelerator.unwrap_model(self.model)
        assert isinstance(module, StageModule)
        return module

    def note_broken(self) -> None:
        """Note what is not finite before the first step, and say so: no step can mend it."""
        self._broken = self._find_broken()
        if self._broken and self.is_world_process_zero():
            logger.warning(
                "%s in %s are not finite before the first step, and stay so",
                counted(sum(self._broken.values()), "weight"),
                ", ".join(list(self._broken)[:3]) + " …" * (len(self._broken) > 3),
            )

    def validate_parameters(self) -> None:
        """Refuse trained parameters that have become NaN or infinite, in any process's slice."""
        broken = self.find_newly_broken()
        if broken:
            raise StageError(
                f"{len(broken)} of the trained parameters are not finite ({broken[0]} …)",
                where=self.args.output_dir,
                mend=MEND_DIVERGED,
            )

    def find_newly_broken(self) -> list[str]:
        """Return names of the parameters with more that is not finite than at the beginning."""
        found = self._find_broken().items()
        return [name for name, count in found if count > self._broken.get(name, 0)]

    def _find_broken(self) -> dict[str, int]:
        """Count what is not finite in each trained parameter; all processes must call it."""
        trainable = self._trainable().items()
        own = {name: int((~torch.isfinite(_own(value))).sum()) for name, value in trainable}
        found: Counter[str] = Counter()
        for name, count in gathered([item for item in own.items() if item[1]]):
            found[name] += count
        return dict(found)


def _own(value: Tensor) -> Tensor:
    """Return this process's slice of a sharded tensor, or an ordinary one."""
    return value.to_local() if isinstance(value, DTensor) else value
