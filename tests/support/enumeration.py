"""The verdict on every family of transformers; run as a script.

``python -m support.enumeration`` makes a tiny model of each family in both mappings, binds it, and
writes the table in docs/models.md again. It takes about five minutes. With names of families it
judges those alone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Final

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from support.shrinking import shrunken_config, shrunken_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import bind_decoder, lora_config, lora_reach
from vlsi_cache.models.loading.kinds import loader_of
from vlsi_cache.models.loading.sources import model_errors

__all__ = ["FAMILIES", "TABLE", "Family", "judge", "make_model", "read_table"]

TABLE: Final = Path(__file__).parents[2] / "docs" / "models.md"
_BEGIN: Final = "| family | reads | verdict | LoRA reaches |\n|---|---|---|---|\n"
_SECONDS: Final = 90.0
_MOST_SHOWN: Final = 90


@dataclass(frozen=True, slots=True)
class Family:
    """A model type in one of the two mappings."""

    model_type: str
    sees_images: bool

    @property
    def reads(self) -> str:
        """What its models read."""
        return "images" if self.sees_images else "text"


FAMILIES: Final = tuple(
    [Family(name, sees_images=False) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
    + [
        Family(name, sees_images=True)
        for name in sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    ]
)


def judge(family: Family) -> str:
    """Return a family's row of the table: bound, or refused in the library's own words."""
    reach = ""
    try:
        decoder = bind_decoder(make_model(family))
        settings = lora_config(decoder, rank=2, alpha=2)
        verdict, reach = "bound", f"{lora_reach(decoder, settings).share:.0%}"
    except ModelError as error:
        verdict = f"refused: {_short(error.what + _cause(error))}"
    return f"| {family.model_type} | {family.reads} | {verdict} | {reach} |\n"


def make_model(family: Family) -> PreTrainedModel:
    """Make a family's tiny model, and raise what loading one would raise.

    Raises:
        ModelError: the model cannot be made.
    """
    with model_errors(family.model_type, "the model cannot be made"):
        config = shrunken_config(family.model_type)
        loader_of(config, family.model_type)
        return shrunken_model(config, sees_images=family.sees_images)


def read_table() -> dict[Family, str]:
    """Return the rows that docs/models.md holds."""
    _, _, rest = TABLE.read_text(encoding="utf-8").partition(_BEGIN)
    rows = {}
    for line in rest.splitlines(keepends=True):
        if not line.startswith("|"):
            break
        name, reads = (cell.strip() for cell in line.split("|")[1:3])
        rows[Family(name, sees_images=reads == "images")] = line
    return rows


def _cause(error: ModelError) -> str:
    # How much logits differ depends on how a machine rounds.
    if error.found is None or error.found.startswith("a difference"):
        return ""
    return f" ({error.found})"


def _short(text: str) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 2] + " …"


def _judge_apart(family: Family) -> str:
    """Judge a family in a process of its own, which may crash or hang."""
    context = multiprocessing.get_context("fork")  # the libraries are loaded once
    answers: Any = context.Queue()
    process = context.Process(target=lambda: answers.put(judge(family)))
    process.start()
    try:
        return str(answers.get(timeout=_SECONDS))
    except Empty:
        verdict = f"no tiny configuration: no answer in {_SECONDS:.0f} seconds"
        return f"| {family.model_type} | {family.reads} | {verdict} |  |\n"
    finally:
        process.kill()
        process.join()


def main(names: list[str]) -> None:
    """Judge all families, or those that are named, and write the table."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    before, begin, rest = TABLE.read_text(encoding="utf-8").partition(_BEGIN)
    known = read_table()
    after = rest.splitlines(keepends=True)[len(known) :]
    rows = [
        known[family]
        if names and family.model_type not in names and family in known
        else _judge_apart(family)
        for family in FAMILIES
    ]
    TABLE.write_text(before + begin + "".join(rows) + "".join(after), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
