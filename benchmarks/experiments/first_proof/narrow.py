"""The narrow student: some channels of the residual stream, of a Llama.

Heads and feed-forward units stay as many as they are. Only what reads or writes the stream is cut.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["kept_channels", "narrow_channels"]

_WRITES = ("o_proj.weight", "down_proj.weight")


def narrow_channels(
    model: Path, folder: Path, size: int, batches: Sequence[Mapping[str, Tensor]]
) -> None:
    """Save a Llama with its largest channels alone, in float32.

    A channel is as large as what the norms give of it, summed over all norms (Minitron, arXiv
    2407.14679). A norm divides by the root mean square of the channels that are there, so its
    weights are scaled to give what they gave.

    Args:
        model: the model's folder.
        folder: where the narrow one goes.
        size: channels that are kept, a multiple of the number of heads.
        batches: inputs of the model, on which channels are compared.
    """
    whole: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    read, given = _squares(whole, batches)
    importance = torch.stack([value.sqrt() for value in given.values()]).sum(0)
    kept = importance.topk(size).indices.sort().values
    config = copy.deepcopy(whole.config)
    config.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    config.hidden_size = size
    state = {}
    for name, value in whole.state_dict().items():
        if name.endswith(_WRITES):
            state[name] = value[kept]
        elif value.ndim == 2:
            state[name] = value[:, kept]
        else:
            shares = read[name.removesuffix(".weight")]
            held = shares[kept].mean() / shares.mean()
            state[name] = value[kept] * held.sqrt()
    student: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.load_state_dict(state)
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def kept_channels(model: Path, narrow: Path) -> Tensor:
    """Return the channel of the model that each of the narrow one's was, ``[D]`` long."""
    whole, part = (_embedding(folder) for folder in (model, narrow))
    places = {tuple(column): place for place, column in enumerate(whole.T.tolist())}
    return torch.tensor([places[tuple(column)] for column in part.T.tolist()])


def _embedding(folder: Path) -> Tensor:
    """Return some rows of the token embedding, which tell all channels apart."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows: Tensor = model.get_input_embeddings().weight.detach()[:64]
    return rows


@torch.no_grad()
def _squares(
    model: Any, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each norm's mean squares by channel: of what it reads, by token, and of what it gives.

    What a norm reads counts by its share of the token's own squares.
    """
    read: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}

    def note(name: str, mask: Tensor, _: nn.Module, inputs: Any, output: Tensor) -> None:
        stream, out = inputs[0][mask], output[mask]
        shares = stream.square() / stream.square().sum(-1, keepdim=True)
        read[name] = read.get(name, 0) + shares.sum(0)
        given[name] = given.get(name, 0) + out.square().sum(0)

    norms = {name: part for name, part in model.named_modules() if name.endswith("norm")}
    for batch in batches:
        mask = batch["attention_mask"].bool()
        hooks = [
            part.register_forward_hook(partial(note, name, mask)) for name, part in norms.items()
        ]
        model(**batch, use_cache=False)
        for hook in hooks:
            hook.remove()
    return read, given
