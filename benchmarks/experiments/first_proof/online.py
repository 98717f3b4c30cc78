"""The rival with the teacher in memory: stage two on whole distributions.

Only this module of the experiment uses the engine below `train_student`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from vlsi_cache import open_cache
from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_data
from vlsi_cache.models import Backbone, Head, load_backbone, run_backbone
from vlsi_cache.recipe import Recipe
from vlsi_cache.student.cached.order import cache_order
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.training import Run, Stage, Training, run_stage
from vlsi_cache.training.folders.checkpoints import save_model
from vlsi_cache.verbalizer import VerbalizerBank, build_verbalizers, load_verbalizers

__all__ = ["interact_online"]


@dataclass(frozen=True)
class DenseCandidates:
    """The counterpart of `CandidateDivergences` on whole distributions, in plain autograd."""

    log_q: Tensor
    """[N, V], the student's."""
    log_p: Sequence[Tensor]
    """C tensors [N, V], the teacher's."""

    @property
    def values(self) -> Tensor:
        """Divergences [N, C], without a gradient."""
        with torch.no_grad():
            return torch.stack([self._divergence(log_p) for log_p in self.log_p], dim=1)

    def matched(self, tap: Tensor) -> Tensor:
        """Return divergences [N] from the matched tap.

        Every token's tap [N] is the same one, as `granularity: batch` has it.
        """
        return self._divergence(self.log_p[int(tap[0])])

    def _divergence(self, log_p: Tensor) -> Tensor:
        return (log_p.exp() * (log_p - self.log_q)).sum(-1)


class OnlineInteraction(Interaction):
    """Stage two beside the teacher, which reads every batch again."""

    def __init__(
        self, teacher: Backbone, readers: VerbalizerBank, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher
        self.readers = (readers,)  # a tuple hides them from this module's parameters

    def forward(  # type: ignore[override]
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        token_samples: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of `Interaction.forward` from the teacher's own distributions."""
        self.seed_draws()
        (readers,) = self.readers
        teacher = self.teacher.decoder
        with torch.no_grad():
            states, final = run_backbone(teacher, readers.taps, inputs, positions)
            read = [teacher.features(hidden) for hidden in readers(states, positions).values()]
            *wanted, output = (self._log_probs(each, teacher.head) for each in [*read, final])
        states, final = run_backbone(self.decoder, self.bank.taps, inputs, positions)
        log_q = self._log_probs(final, self.decoder.head)
        losses = [DenseCandidates(log_q, [output]).matched(torch.zeros_like(labels))]
        self.observe("kl_output", losses[0].mean())
        compared: list[Any] = [
            DenseCandidates(self._log_probs(self.decoder.features(each), self.decoder.head), wanted)
            for each in self.bank(states, positions).values()
        ]
        if compared:
            inner = self._matched(compared, token_samples, len(inputs["input_ids"]))
            losses += [loss * self.settings.inner_weight for loss in inner]
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        return {"loss": torch.stack([loss.sum() for loss in losses]).sum() / count}

    def _log_probs(self, features: Tensor, head: Head) -> Tensor:
        return head.real_rows(self.vocab_size).logits(features).float().log_softmax(-1)


def interact_online(recipe: Recipe, callbacks: Sequence[TrainerCallback]) -> Path:
    """Run stage two of a recipe from its teacher instead of its cache.

    Returns:
        Folder of the student.
    """
    settings = recipe.interaction
    assert settings.output == "forward"
    assert settings.inner in ("forward", "none")
    assert settings.matching.granularity == "batch"
    run = Run(recipe, torch.device("cpu"), load_data(recipe.data), callbacks)
    folder = recipe.output / "interaction"
    student = load_backbone(recipe.student, "student", run.device)
    stage = Stage(
        name="interaction",
        folder=folder,
        result=folder / "model",
        schedule=settings,
        settings={**run.settings(), "interaction": settings.decisive()},
        start=lambda: _start(run, student),
        save=lambda module: save_model(module.learned(), run.recipe.student, folder / "model"),
    )
    return run_stage(run, stage)


def _start(run: Run, student: Backbone) -> Training[OnlineInteraction]:
    recipe = run.recipe
    teacher = load_backbone(recipe.teacher, "teacher", run.device)
    readers, bank = _verbalizers(recipe, teacher, student)
    module = OnlineInteraction(
        teacher,
        readers,
        student,
        bank,
        recipe.interaction,
        teacher_taps=readers.taps,
        seed=recipe.seed,
    )
    return Training(
        module=module,
        dataset=IndexedConversations(run.data),
        collate=TokenBatches(encoder_for(student, recipe.data)),
        order=cache_order(open_cache(recipe.cache_path)),  # the same samples as beside the cache
        callbacks=run.callbacks,
    )


def _verbalizers(
    recipe: Recipe, teacher: Backbone, student: Backbone
) -> tuple[VerbalizerBank, VerbalizerBank]:
    """Return the frozen verbalizers of the teacher, and those of the student."""
    if recipe.interaction.inner == "none":
        # banks without taps: the teacher's inner layers are not read either
        readers, bank = (
            build_verbalizers(backbone.decoder, (), recipe.student.verbalizer, seed=0)
            for backbone in (teacher, student)
        )
    else:
        assert recipe.teacher.verbalizers is not None
        assert recipe.student.verbalizers is not None
        readers = load_verbalizers(
            recipe.teacher.verbalizers, teacher.decoder, fingerprint=teacher.fingerprint
        )
        bank = load_verbalizers(
            recipe.student.verbalizers, student.decoder, fingerprint=student.fingerprint
        )
    return readers.eval().requires_grad_(False), bank
