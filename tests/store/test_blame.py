"""Who is at fault: every combination of what a file, its seal and the index say."""

from __future__ import annotations

import itertools

import pytest

from vlsi_cache.store.cache.verification.blame import Blame, FileState, blame

SEALS = (None, "a", "b", "c")
"""None: the file cannot be read, or there is no seal, or no index."""

CASES = [
    (FileState(own, is_in_place=in_place, decodes=decodes), seal, index)
    for own, seal, index, in_place, decodes in itertools.product(
        SEALS, SEALS, SEALS, (True, False), (True, False)
    )
]


def parties(found: Blame) -> set[str]:
    return set(found.name.lower().replace("_and_", " ").replace("_or_", " ").split()) - {"nobody"}


@pytest.mark.parametrize(("file", "seal", "index"), CASES)
def test_every_combination_is_judged_by_the_majority(
    file: FileState[str], seal: str | None, index: str | None
) -> None:
    found = blame(file, seal, index)
    voices = [voice for voice in (seal, index) if voice is not None]
    agreed = all(voice == file.seal for voice in voices)
    if not file.is_in_place:
        assert "file" in parties(found)
    if index is None:
        assert "index" not in parties(found)
    if seal is None:
        assert "seal" not in parties(found)
    if agreed and file.is_in_place and (voices or file.decodes):
        assert found is Blame.NOBODY
    elif len(voices) == 2 and file.is_in_place and not agreed:
        odd = {file.seal: Blame.INDEX, index: Blame.FILE} if seal in (file.seal, index) else {}
        expected = Blame.SEAL if file.seal == index else odd.get(seal, Blame.FILE_OR_SEAL)
        assert found is expected
    else:
        assert found is not Blame.NOBODY


@pytest.mark.parametrize(
    ("file", "seal", "index", "expected"),
    [
        (FileState("a"), "a", "a", Blame.NOBODY),
        (FileState("b"), "a", "a", Blame.FILE),
        (FileState("a"), "b", "a", Blame.SEAL),
        (FileState("a"), "a", "b", Blame.INDEX),
        (FileState("a"), "b", "c", Blame.FILE_OR_SEAL),
        (FileState(None), "a", "b", Blame.FILE_OR_SEAL),
        (FileState("a"), None, "b", Blame.FILE),
        (FileState("a"), None, "a", Blame.NOBODY),
        (FileState("a"), None, None, Blame.NOBODY),
        (FileState("a", decodes=False), None, None, Blame.FILE),
        (FileState("a"), "b", None, Blame.FILE_OR_SEAL),
        (FileState("a", decodes=False), "b", None, Blame.FILE),
        (FileState("a", is_in_place=False), "a", "a", Blame.FILE),
        (FileState("a", is_in_place=False), "a", None, Blame.FILE),
        (FileState("a", is_in_place=False), "a", "b", Blame.FILE_AND_SEAL),
        (FileState("a", is_in_place=False), "b", "a", Blame.FILE_AND_SEAL),
        (FileState("a", is_in_place=False), "b", "c", Blame.FILE_OR_SEAL),
    ],
)
def test_two_outvote_one(
    file: FileState[str], seal: str | None, index: str | None, expected: Blame
) -> None:
    assert blame(file, seal, index) is expected
