"""Cards: what a student or a cache is, for who finds it on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

import yaml

from vlsi_cache.recipe import TAP_WEIGHT_KEYS, Recipe
from vlsi_cache.recipe.publicnames import (
    hub_name,
    public_name,
    public_settings,
    public_source,
)
from vlsi_cache.store import Cache

__all__ = ["StudentFacts", "cache_card", "size_category", "student_card"]

_TAGS: Final = ("vlsi-cache", "distillation")
_HUB_CACHE: Final = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
_SIZES: Final = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""Where the hub's size categories meet, from 1,000 samples on. Each is ten times the one before."""


@dataclass(frozen=True, slots=True)
class StudentFacts:
    """What a card says about a student."""

    name: str
    """Name of the student, for the title."""
    recipe: Recipe
    """The recipe of its training."""
    sees_images: bool
    """Whether it reads images."""
    data: str
    """The conversations, as they were named."""
    data_fingerprint: str
    """Their identity."""
    num_samples: int
    """How many it learned from."""
    cache: Cache | None = None
    """The teacher's record that it learned from."""
    figures: Sequence[tuple[str, str, float]] = field(default=())
    """Stage, name and value of each figure."""


def student_card(facts: StudentFacts) -> str:
    """Return the card of a student: its origin, its figures and its recipe."""
    recipe, cache = facts.recipe, facts.cache
    base = hub_name(recipe.student.model or "")
    names = map(hub_name, _data_names(recipe))
    datasets = list(dict.fromkeys(name for name in names if name is not None))
    if cache is not None and (own := _repository_of(str(recipe.cache_path))):
        datasets.append(own)
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if facts.sees_images else "text-generation",
        "base_model": base,
        "base_model_relation": None if base is None else "finetune",
        "datasets": datasets or None,
        "tags": [*_TAGS],
    }
    settings = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"output", "device"})
    record = recipe.cache.model_dump(mode="json", include={"k", "m", "drawn_from"})
    if record.keys() & settings.get("cache", {}).keys():  # a part of it would mean another record
        settings["cache"] |= record
    weight = recipe.interaction.model_dump(mode="json", include=set(TAP_WEIGHT_KEYS))
    if weight.keys() & settings.get("interaction", {}).keys():  # likewise, of the taps' weight
        settings["interaction"] |= weight
    parts = [
        f"# {_title(facts)}",
        "This model is a student of offline distillation: it learned from a record of its "
        "teacher's distributions, layer by layer."
        if cache is not None
        else "This model was fine-tuned on its data, without a teacher.",
        _table(("", ""), _origin(facts)),
    ]
    if facts.figures:
        figures = [(stage, name, f"{value:.4g}") for stage, name, value in facts.figures]
        parts += ["## Figures", _table(("stage", "figure", "value"), figures)]
    parts += ["## Recipe", _fenced("yaml", _yaml(public_settings(settings)))]
    return _card(metadata, parts)


def _title(facts: StudentFacts) -> str:
    """Name the student, and what it learned from."""
    if facts.cache is None:
        return f"{facts.name}, fine-tuned"
    teacher = public_name(facts.cache.manifest.teacher.name).rpartition("/")[2]
    return f"{facts.name}, distilled from {teacher}"


def _repository_of(address: str) -> str | None:
    """Return the dataset repository of a cache that is read from the hub."""
    found = _HUB_CACHE.match(address)
    return found[1] if found else None


def _origin(facts: StudentFacts) -> list[tuple[str, str]]:
    """Return what a student was made from, and by what."""
    recipe, cache = facts.recipe, facts.cache
    rows = [("began as", _revised(recipe.student.model or "", recipe.student.revision))]
    if cache is not None:
        teacher = cache.manifest.teacher
        rows += [
            ("teacher", _revised(teacher.name, teacher.revision)),
            ("teacher's weights", f"`{teacher.weights_fingerprint}`"),
            ("cache", f"`{cache.digest or 'incomplete when it was read'}`"),
            ("taps of the teacher", _taps(cache)),
        ]
    return [
        *rows,
        ("data", f"{public_source(facts.data)}, {facts.num_samples:,} samples"),
        ("data's fingerprint", f"`{facts.data_fingerprint}`"),
        ("stages", ", ".join(recipe.stages)),
        ("made by", f"vlsi-cache {version('vlsi-cache')}"),
    ]


def cache_card(cache: Cache, repository: str) -> str:
    """Return the card of a cache as a dataset repository.

    Args:
        cache: a complete cache.
        repository: owner and name on the hub.
    """
    manifest = cache.manifest
    metadata = {
        "pretty_name": f"Teacher's record of {public_source(manifest.dataset.source)}",
        "size_categories": [size_category(len(cache))],
        "tags": [*_TAGS],
        "viewer": False,  # these are no tables
    }
    address = f"hf://datasets/{repository}"
    commands = (
        f"vlsi-cache inspect {address}\n"
        f"vlsi-cache verify {address}\n"
        f"vlsi-cache train-student --student MODEL --data DATA --cache {address}"
    )
    return _card(
        metadata,
        [
            f"# {repository.rpartition('/')[2]}",
            "This is what a teacher says about each response token at several of its layers: a "
            "cache of vlsi-cache. Students learn from it without the teacher. It is read in parts, "
            "without a download of the whole.",
            "The records hold the tokens of the responses, but no prompts and no images.",
            _table(("", ""), _contents(cache)),
            "## Use",
            _fenced("sh", commands),
            "Training needs the same conversations: the data's fingerprint is compared.",
        ],
    )


def size_category(num_samples: int) -> str:
    """Return the hub's own name for about so many samples."""
    reached = sum(num_samples >= 10**power for power in range(3, 3 + len(_SIZES)))
    if not reached:
        return f"n<{_SIZES[0]}"
    if reached == len(_SIZES):
        return f"n>{_SIZES[-1]}"
    return f"{_SIZES[reached - 1]}<n<{_SIZES[reached]}"


def _contents(cache: Cache) -> list[tuple[str, str]]:
    """Return what a cache holds, and how it came about."""
    manifest = cache.manifest
    sampling, teacher, hidden = manifest.sampling, manifest.teacher, manifest.hidden
    state = []
    if hidden is not None:
        text = f"{hidden.bits} signs of block {hidden.block} of {hidden.num_blocks}"
        state = [("hidden state", f"{text}, which `interaction.hidden: {{}}` learns")]
    return [
        ("teacher", _revised(teacher.name, teacher.revision)),
        ("teacher's weights", f"`{teacher.weights_fingerprint}`"),
        ("tokenizer", f"{public_name(manifest.tokenizer.name)}, `{manifest.tokenizer.hash}`"),
        ("data", f"{public_source(manifest.dataset.source)}, {len(cache):,} samples"),
        ("data's fingerprint", f"`{manifest.dataset.fingerprint}`"),
        ("response tokens", f"{cache.num_tokens:,}"),
        ("taps", _taps(cache)),
        ("kept of each distribution", f"{sampling.k} most likely tokens, {sampling.m} drawn"),
        *state,
        ("digest", f"`{cache.digest}`"),
        ("made by", f"vlsi-cache {manifest.vlsi_cache_version}"),
    ]


def _data_names(recipe: Recipe) -> Iterable[str]:
    for path in (recipe.data.path, *(source.path for source in recipe.data.sources)):
        yield from [path] if isinstance(path, str) else path or []


def _revised(name: str, revision: str | None) -> str:
    return public_name(name) + (f" at `{revision}`" if revision else "")


def _taps(cache: Cache) -> str:
    return ", ".join(map(str, cache.manifest.taps[:-1])) + " and the output"


def _card(metadata: Mapping[str, Any], parts: Sequence[str]) -> str:
    known = {name: value for name, value in metadata.items() if value is not None}
    return "\n\n".join([f"---\n{_yaml(known)}\n---", *parts]) + "\n"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
