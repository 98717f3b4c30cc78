"""Models of a recipe by their configurations alone: shapes, and no weights read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from vlsi_cache.errors import ModelError, first_line
from vlsi_cache.models import (
    Backbone,
    Decoder,
    Head,
    ModelPreview,
    load_config,
    preview_model,
    saved_dtype,
)
from vlsi_cache.models.binding.trace import block_output, removing
from vlsi_cache.models.loading.precision import frozen_dtype, trained_dtype
from vlsi_cache.models.places.parallel import head_counts
from vlsi_cache.recipe import ModelSection

__all__ = ["REHEARSED", "Sketch", "read_sketch"]

REHEARSED: Final = ("eager", "sdpa")
"""Kernels of attention that run on tensors without numbers."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """A model that can be built without its weights."""

    section: ModelSection
    """The recipe's ``teacher`` or ``student``."""
    role: str
    """``teacher`` or ``student``."""
    config: str
    """Its configuration as JSON, since building a model changes the object."""
    kind: type[PreTrainedConfig]
    """Class of its configuration."""
    preview: ModelPreview
    """What its small files say."""

    @property
    def pixels_per_patch(self) -> int:
        """Numbers of one patch of a picture, or 0 for a model that sees none."""
        vision = getattr(self.fresh_config(), "vision_config", None)
        side = getattr(vision, "patch_size", None)
        if not isinstance(side, int):
            return 0
        return 3 * side * side * int(getattr(vision, "temporal_patch_size", 1) or 1)

    @property
    def is_quantised(self) -> bool:
        """Whether the checkpoint's weights are quantised."""
        return "quantization_config" in json.loads(self.config)

    def dividing_heads(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of processes by which tensor parallelism can divide the model."""
        config = self.fresh_config()
        if not getattr(config.get_text_config(decoder=True), "base_model_tp_plan", None):
            return ()
        heads = head_counts(config).values()
        return tuple(count for count in counts if not any(head % count for head in heads))

    def fresh_config(self, num_blocks: int | None = None) -> PreTrainedConfig:
        """Return the configuration, with another number of blocks if one is given."""
        config = self.kind.from_dict(json.loads(self.config))
        if num_blocks is not None:
            text = config.get_text_config(decoder=True)
            text.num_hidden_layers = num_blocks
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:num_blocks]
        return config

    def dtype(self, device: torch.device, *, trains: bool) -> torch.dtype:
        """Return the dtype in which a run holds the weights.

        Args:
            device: the planned device.
            trains: whether the weights themselves train.
        """
        given = self.section.dtype
        named = trained_dtype(given) if trains else frozen_dtype(given, device)
        if named == "auto":
            config = self.fresh_config()
            own = config.dtype or config.get_text_config(decoder=True).dtype
            return saved_dtype(named, own)
        found: torch.dtype = getattr(torch, named)
        return found

    def autocasts(self, device: torch.device) -> bool:
        """Report whether training forwards run in bfloat16 autocast on the planned device."""
        if device.type == "cpu":
            return self.section.dtype == "bfloat16"
        return self.section.dtype not in ("float32", "float16")

    def build(
        self, planned: torch.device, *, trains: bool, num_blocks: int | None = None
    ) -> Backbone:
        """Build the model of random or fake weights, without a processor, on the default device.

        Args:
            planned: the device whose dtype it gets.
            trains: whether the weights themselves will train.
            num_blocks: number of blocks; the model's own by default.

        Raises:
            ModelError: the model cannot be built from its configuration.
        """
        config = self.fresh_config(num_blocks)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        dtype = self.dtype(planned, trains=trains)
        config.quantization_config = None
        try:
            kernel = self.section.attn_implementation
            asked = {"attn_implementation": kernel} if kernel in REHEARSED else {}
            model = loader.from_config(config, dtype=dtype, **asked)
            decoder = _view(model.eval().requires_grad_(False))
        except Exception as error:
            # Anything, because the code is the family's own.
            raise ModelError(
                "the model cannot be built from its configuration alone",
                where=self.section.model,
                found=f"{type(error).__name__}: {first_line(error)}",
                mend="Its memory cannot be planned. vlsi-cache check reads the data with it",
            ) from error
        return Backbone(
            name=str(self.section.model),
            processor=None,
            decoder=decoder,
            vocab_size=min(self.preview.vocab_size, len(decoder.head.weight)),
            fingerprint="",
            autocast=self.autocasts(planned),
        )


def read_sketch(section: ModelSection, role: str) -> Sketch:
    """Read a model's configuration and tokenizer.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        role: name of the section.

    Raises:
        ModelError: there is no such model, or it lacks a configuration, weights or a tokenizer.
    """
    preview = preview_model(section, role)
    config = load_config(preview.name, revision=section.revision)
    text = config.to_json_string(use_diff=False)
    return Sketch(section, role, text, type(config), preview)


def _view(model: PreTrainedModel) -> Decoder:
    """The model's blocks, final norm and head, by names and order alone.

    ``models.bind_decoder`` proves them by numbers, which a model without weights does not have.
    """
    body: Any = model.get_decoder()
    output: Any = model.get_output_embeddings()
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [part for part in body.modules() if isinstance(part, nn.ModuleList)]
    blocks = next(part for part in lists if len(part) == count)
    head = Head(output.weight, getattr(output, "bias", None))
    return Decoder(model, body, blocks, _final_norm(model, blocks), head)


def _final_norm(model: PreTrainedModel, blocks: nn.ModuleList) -> nn.Module:
    """The first module outside the blocks that takes the last block's output."""
    last: list[Any] = []
    readers: list[nn.Module] = []
    inside = {id(part) for part in blocks.modules()}

    def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        last[:] = [block_output(output)]

    def note(part: nn.Module, args: tuple[Any, ...]) -> None:
        if last and args and args[0] is last[0]:
            readers.append(part)

    hooks = [blocks[-1].register_forward_hook(keep)]
    hooks += [
        part.register_forward_pre_hook(partial(note))
        for part in model.modules()
        if id(part) not in inside
    ]
    ids = torch.zeros(1, 4, dtype=torch.long)
    with removing(hooks), torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    output = model.get_output_embeddings()
    return next((part for part in readers if part is not output), nn.Identity())
