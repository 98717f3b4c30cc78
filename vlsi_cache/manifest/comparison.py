"""Comparing manifests: may a run go on with this cache, may two caches become one?"""

from __future__ import annotations

from typing import Any, Final

from vlsi_cache.differences import Difference, find_differences
from vlsi_cache.manifest.manifest import CacheManifest

__all__ = [
    "explain_difference",
    "find_kind_differences",
    "find_manifest_differences",
    "is_same_library",
]

_FOR_PEOPLE: Final[dict[str, Any]] = {
    "vlsi_cache_version": True,
    "teacher": {"name"},
    "tokenizer": {"name"},
    "dataset": {"source"},
    "batch_size": True,
    "parts": {"__all__": {"dataset": {"source"}, "batch_size": True}},
}
"""Fields that are not compared. A moved model folder is the same model, as its fingerprint says. A
record does not depend on the batch that its sample was in, but for its last bits."""

_OF_PART: Final = frozenset({"dataset", "parts", "samples_per_shard"})
"""Fields in which the parts of a merged cache may differ."""

_VERSION: Final = "format_version"

_MEANINGS: Final = {
    "chat_template_hash": "the chat template renders other conversations",
    "dataset.fingerprint": "other conversations, or other images",
    "dataset.num_samples": "the data is longer or shorter; see data.limit",
    "hidden": "another hidden state, or none",
    "hidden.block": "the hidden state is another block's",
    "dtype": "the teacher runs in another precision",
    "sampling.seed": "other draws",
    "processor_options": "the processor makes other tokens or pixels",
    "parts": "one of the two is a merged cache",
    "samples_per_shard": "the shards have other sizes",
    "taps": "the teacher is read at other layers",
    "teacher.config.sha256": "the teacher's config.json decides other numbers",
    "teacher.revision": "the teacher is another version on the hub",
    "teacher.model_type": "the teacher has another architecture",
    "teacher.weights_fingerprint": "the teacher has other weights",
    "tokenizer.hash": "the teacher has another vocabulary",
    "tokenizer.vocab_size": "the teacher's vocabulary has another size",
    "verbalizers_fingerprint": "the teacher's verbalizers have other weights",
}
"""Path → what a difference comes from, where the path does not say it."""


def find_manifest_differences(recorded: CacheManifest, wanted: CacheManifest) -> list[Difference]:
    """Find the differences that make this cache another than the wanted one.

    Names, sources, the library's version and the batch size are not compared.

    Returns:
        The differences. If there are none, a run may go on with this cache.
    """
    found = find_differences(*_contents(recorded, wanted))
    # the version follows from what is recorded, which says more
    return [one for one in found if one.path != _VERSION or len(found) == 1]


def find_kind_differences(manifest: CacheManifest, first: CacheManifest) -> list[Difference]:
    """Find the differences that keep two caches from being merged.

    Their samples and shards may differ.
    """
    own, others = (
        {name: value for name, value in content.items() if name not in _OF_PART}
        for content in _contents(manifest, first)
    )
    return find_differences(own, others)


def is_same_library(one: CacheManifest, other: CacheManifest) -> bool:
    """Report whether both say that one version of transformers read the teacher's files."""
    first, second = one.teacher.config, other.teacher.config
    if first is None or second is None:
        return False
    return first.transformers == second.transformers


def explain_difference(difference: Difference, other: str = "asked for") -> str:
    """Render a difference as a clause, with its meaning if there is one to add.

    Args:
        difference: the difference.
        other: name of the second manifest.
    """
    clause = difference.clause(other)
    meaning = _MEANINGS.get(difference.path)
    return clause if meaning is None else f"{clause} ({meaning})"


def _contents(one: CacheManifest, other: CacheManifest) -> list[dict[str, Any]]:
    """Return what is compared of two manifests.

    A config counts only if one version of transformers read both. Others name and fill its values
    otherwise, and older caches do not keep it.
    """
    found = [manifest.model_dump(mode="json", exclude=_FOR_PEOPLE) for manifest in (one, other)]
    if not is_same_library(one, other):
        for content in found:
            content["teacher"].pop("config", None)
    return found
