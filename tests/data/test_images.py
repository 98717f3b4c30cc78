"""Images decode to upright RGB. Errors name missing and corrupt ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vlsi_cache.data import ImageRef
from vlsi_cache.errors import DataError


def test_every_mode_becomes_rgb(folder: Path) -> None:
    for name in ("red.png", "blue.jpg", "more/grey.png"):
        assert ImageRef(path=folder / name).load().mode == "RGB"


def test_exif_orientation_is_applied_as_transformers_does(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 20)).save(folder / "turned.jpg", exif=exif)
    assert ImageRef(path=folder / "turned.jpg").load().size == (20, 40)


def test_a_missing_image_is_named_with_its_sample(folder: Path) -> None:
    missing = ImageRef(path=folder / "gone.png")
    assert not missing.exists()
    for read in (missing.load, missing.digest):
        with pytest.raises(DataError, match=r"^train.jsonl:4, .*gone\.png: image file is missing"):
            read(where="train.jsonl:4")


def test_a_folder_is_not_an_image(folder: Path) -> None:
    with pytest.raises(DataError, match=r"more: image file cannot be read; found Is a directory"):
        ImageRef(path=folder / "more").load()


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty"])
def test_a_corrupt_image_is_named_with_its_sample(damage: str, folder: Path) -> None:
    # Noise, so that half of the file is not half of a header.
    Image.effect_noise((64, 64), 50).save(folder / "sound.png")
    sound = (folder / "sound.png").read_bytes()
    content = {"truncated": sound[: len(sound) // 2], "noise": b"no image", "empty": b""}[damage]
    (folder / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"^train.jsonl:4, .*bad\.png: image cannot be decoded"):
        ImageRef(path=folder / "bad.png").load(where="train.jsonl:4")


def test_a_reference_is_either_a_path_or_bytes() -> None:
    with pytest.raises(ValueError, match="either a path or data"):
        ImageRef()
