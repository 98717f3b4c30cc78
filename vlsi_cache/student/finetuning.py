"""Stage three, fine-tuning: every parameter, cross-entropy, an ordinary checkpoint out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for
from vlsi_cache.models import (
    Backbone,
    Decoder,
    load_config_of,
    run_backbone,
    saved_dtype,
)
from vlsi_cache.objectives import (
    SparseTargets,
    linear_cross_entropy,
    linear_soft_cross_entropy,
)
from vlsi_cache.recipe import FinetuningSection, ModelSection, Recipe
from vlsi_cache.store import Cache
from vlsi_cache.student.cached import CachedBatches, cache_order
from vlsi_cache.student.card import card_of
from vlsi_cache.student.choosing import HeldOutSamples, chosen_by, held_out_of
from vlsi_cache.training import (
    Run,
    Stage,
    StageModule,
    Training,
    first_step_rate,
    load_student,
    plain_order,
    run_stage,
    save_model,
)
from vlsi_cache.verbalizer import carry_exits

__all__ = ["Finetuning", "finetune"]


class Finetuning(StageModule):
    """Cross-entropy of the student's own output, and its divergence from the teacher's if asked.

    Args:
        student: the student.
        settings: which parts train, and how much the teacher's record counts.
    """

    accepts_loss_kwargs = True

    def __init__(self, student: Backbone, settings: FinetuningSection) -> None:
        super().__init__()
        self.record_weight = settings.record_weight
        self.model = student.decoder.model
        self.decoder = student.decoder
        self.vocab_size = student.vocab_size
        self.model.requires_grad_(True)
        if not settings.train_vision_tower:
            _freeze_outside_decoder(student.decoder)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        token_samples: Tensor,
        targets: SparseTargets | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Return the mean loss over response tokens, nats.

        Args:
            inputs: the student's own inputs.
            positions: ``[N]`` long, flat positions that predict the response tokens.
            labels: ``[N]`` long, the response tokens.
            token_samples: unused; every batch has it.
            targets: ``[N, L_t + 1, S]``, the teacher's record, its final output last.
            num_items_in_batch: response tokens of the whole accumulated batch; N by default.
        """
        _, features = run_backbone(self.decoder, (), inputs, positions)
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        head = self.head.to_autocast().real_rows(self.vocab_size)
        if targets is None:
            return {"loss": self.with_unused(linear_cross_entropy(features, head, labels) / count)}
        ids, weights, entropy = (value[:, -1] for value in targets)
        weights = self.record_weight * weights
        loss, log_probs = linear_soft_cross_entropy(
            features,
            head,
            torch.cat([labels[:, None], ids], 1),
            torch.cat([torch.ones_like(weights[:, :1]), weights], 1),
        )
        known = self.record_weight * entropy
        self.observe("cross_entropy", -log_probs[:, 0].mean())
        divergence = -(weights * log_probs[:, 1:]).sum(1) - known
        self.observe("kl_output", divergence.mean() / self.record_weight)
        return {"loss": self.with_unused((loss - known.sum()) / count)}


def finetune(
    run: Run,
    source: Path | None = None,
    cache: Cache | None = None,
    held_out: HeldOutSamples | None = None,
    learned_from: Cache | None = None,
) -> Path:
    """Train the whole student and save it under its own architecture.

    Args:
        run: what all stages share.
        source: folder of the merged student after interaction; the recipe's student if None.
        cache: the complete record of the same data, if the student goes on learning from it.
        held_out: the samples on which the student is measured, if any.
        learned_from: the cache of any stage, for the card.

    Returns:
        Folder of the finished student.

    Raises:
        ModelError: the student cannot be loaded.
        StageError: the folder holds another run's stage.
    """
    recipe = run.recipe
    section = _section(recipe, source)
    student = load_student(run, section, trains=True)
    original = load_config_of(recipe.student)
    began_as = student.fingerprint
    stage = Stage(
        name="finetuning",
        folder=recipe.output / "finetuning",
        result=recipe.student_path,
        schedule=recipe.finetuning,
        settings=_settings(run, student, cache) | chosen_by(held_out),
        start=lambda: _start(run, student, cache, held_out),
        save=lambda module: _save(module, original, section, run, began_as, learned_from),
    )
    return run_stage(run, stage)


def _section(recipe: Recipe, source: Path | None) -> ModelSection:
    """Return the recipe's student, or the one in a folder."""
    if source is None:
        return recipe.student
    return recipe.student.model_copy(update={"model": str(source), "revision": None})


def _settings(run: Run, student: Backbone, cache: Cache | None) -> dict[str, object]:
    settings = {
        **run.settings(),
        **student.identity(),
        "finetuning": run.recipe.finetuning.decisive(),
    }
    if cache is not None:
        settings["cache"] = cache.manifest.model_dump(mode="json")
        settings["tail"] = run.recipe.interaction.tail
    return settings


def _save(
    module: Finetuning,
    original: PreTrainedConfig,
    section: ModelSection,
    run: Run,
    began_as: str,
    learned_from: Cache | None,
) -> None:
    """Save the student under the config and in the dtype of the model that it began as."""
    dtype = saved_dtype(section.dtype, original.dtype)
    module.model.to(dtype=dtype)  # type: ignore[call-arg]
    original.dtype = dtype
    module.model.config = original
    folder, card = run.recipe.student_path, card_of(run, learned_from, original)
    save_model(module.model, section, folder, card)
    carry_exits(Path(section.model or ""), began_as, module.model, folder)


def _start(
    run: Run, student: Backbone, cache: Cache | None, held_out: HeldOutSamples | None
) -> Training[Finetuning]:
    settings = run.recipe.finetuning
    module = Finetuning(student, settings)
    if settings.gradient_checkpointing:
        student.decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    samples = IndexedConversations(run.data)
    encoder = encoder_for(student, run.recipe.data)
    collate: TokenBatches | CachedBatches = TokenBatches(encoder)
    order = plain_order(len(run.data), run.left_out.indices)
    if cache is not None:
        collate = CachedBatches(encoder, cache, run.recipe.interaction.tail)
        order = cache_order(cache, run.left_out.indices)

    def measure() -> float:
        return first_step_rate(
            module,
            student.decoder.blocks.parameters(),
            lambda indices: collate([samples[index] for index in indices]),
            np.concatenate(order.groups),
            settings,
            autocast=student.autocast,
        )

    return Training(
        module=module,
        dataset=samples,
        collate=collate,
        order=order,
        learning_rate=measure,
        callbacks=run.callbacks,
        autocast=student.autocast,
        guards_samples=True,
        held_out=held_out_of(held_out, student, run.recipe),
    )


def _freeze_outside_decoder(decoder: Decoder) -> None:
    decoder.model.requires_grad_(False)
    decoder.body.requires_grad_(True)
    decoder.head.weight.requires_grad_(True)
    if decoder.head.bias is not None:
        decoder.head.bias.requires_grad_(True)
