"""Whether two processors decide the same, from what ``save_pretrained`` wrote of them.

A processor is saved as it is in effect, with all defaults. So two that one version of transformers
saved state the same fields. Another version may know more fields, or fewer: then only those that
both state are compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vlsi_cache.differences import ABSENT, Difference, find_differences
from vlsi_cache.errors import CacheError
from vlsi_cache.jsonmodels import parse_json
from vlsi_cache.store.cache.folder import PROCESSOR_FILE_BYTES
from vlsi_cache.store.cache.seals import FileSeal, ProcessorSeal, sha256_hex
from vlsi_cache.store.places.keys import PROCESSOR_FOLDER
from vlsi_cache.store.places.place import Place

__all__ = ["SavedProcessor", "find_processor_problems", "kept_processor", "saved_processor"]

_TOKENIZER: Final = "tokenizer.json"
_NAMED: Final = 10
_UNDECIDING: Final = re.compile(
    r"_.*|.*_class|.*_type|.*version|.*_file|name_or_path|auto_map|backend|is_local|use_fast"
    r"|local_files_only|device|return_\w+|chat_template|truncation(_side)?|padding(_side)?"
    r"|pad_token(_id|_type_id)?|model_max_length|max_length|stride|trim_offsets|decoder"
    r"|clean_up_tokenization_spaces|spaces_between_special_tokens"
)
"""Keys of names, versions, paths and of what a dump sets itself, or asks of decoding alone. The
manifest has hashes of the vocabulary and of the chat template."""


@dataclass(frozen=True, slots=True)
class SavedProcessor:
    """A processor's files, of which few are read."""

    files: Mapping[str, FileSeal]
    """Name → seal."""
    place: Place | None = None
    """The cache that keeps the files."""
    contents: Mapping[str, bytes] | None = None
    """The files' bytes, if no cache keeps them."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if the cache lost or damaged them. Verifying says so."""
        if self.place is None:
            return (self.contents or {}).get(name)
        wanted, key = self.files[name], f"{PROCESSOR_FOLDER}/{name}"
        try:
            # a seal may state any size
            if self.place.size(key) != wanted.num_bytes or wanted.num_bytes > PROCESSOR_FILE_BYTES:
                return None
            content = self.place.read(key, limit=wanted.num_bytes)
        except CacheError:
            return None
        return content if sha256_hex(content) == wanted.sha256 else None


def kept_processor(place: Place, seal: ProcessorSeal | None) -> SavedProcessor | None:
    """Return the processor that a cache keeps under a seal, or None if it keeps none."""
    return None if seal is None else SavedProcessor(seal.files, place)


def saved_processor(folder: Path) -> SavedProcessor:
    """Return the processor that ``save_pretrained`` wrote to a folder of this machine."""
    contents = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(path for path in folder.rglob("*") if path.is_file())
    }
    files = {
        name: FileSeal(sha256=sha256_hex(content), num_bytes=len(content))
        for name, content in contents.items()
    }
    return SavedProcessor(files, contents=contents)


def find_processor_problems(
    kept: SavedProcessor, other: SavedProcessor, *, same_library: bool, name: str = "asked for"
) -> list[str]:
    """Find what two processors decide otherwise, as clauses.

    Args:
        kept: a processor.
        other: another one.
        same_library: whether one version of transformers saved both.
        name: name of the other one in the clauses.
    """
    found: list[Difference] = []
    for file in sorted(kept.files.keys() | other.files.keys()):
        one, two = kept.files.get(file), other.files.get(file)
        if one == two or not file.endswith(".json"):
            continue
        trees = [
            {} if seal is None else _tree(file, processor.read(file))
            for seal, processor in ((one, kept), (two, other))
        ]
        if None not in trees:
            found += find_differences(*[{file: tree} if tree else {} for tree in trees])
    if not same_library:
        found = [one for one in found if ABSENT not in (one.recorded, one.wanted)]
    more = [f"{len(found) - _NAMED:,} more values differ"] if len(found) > _NAMED else []
    return [one.clause(name) for one in found[:_NAMED]] + more


def _tree(file: str, content: bytes | None) -> dict[str, Any] | None:
    """Return what a file decides, or None if that is not known."""
    try:
        tree = parse_json(content or b"")
        if not isinstance(tree, dict):
            return None
        deciding: dict[str, Any] = _deciding(_without_words(tree) if file == _TOKENIZER else tree)
    except (ValueError, RecursionError):  # a foreign cache may hold anything
        return None
    return deciding


def _without_words(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's settings, with digests in place of its many words and merges."""
    model = dict(tree["model"]) if isinstance(tree.get("model"), dict) else {}
    words, merges = model.pop("vocab", None), model.pop("merges", None)
    if isinstance(words, list):  # with scores, which the vocabulary's hash does not know
        model["vocab"] = sha256_hex(repr(words).encode())
    if isinstance(merges, list):  # older libraries write a pair as one text
        pairs = [one if isinstance(one, str) else " ".join(map(str, one)) for one in merges]
        model["merges"] = sha256_hex("\n".join(pairs).encode())
    return {**tree, "model": model}


def _deciding(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _deciding(one) for key, one in value.items() if not _UNDECIDING.fullmatch(key)}
        return {key: one for key, one in kept.items() if one is not None}
    if isinstance(value, list):
        if any(isinstance(one, dict) for one in value):
            return {str(number): _deciding(one) for number, one in enumerate(value)}
        return [_deciding(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
