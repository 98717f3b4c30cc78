"""Images decode to upright RGB. Errors name missing and corrupt ones."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

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


def test_grey_of_16_bits_keeps_its_shades(folder: Path) -> None:
    shades = np.array([[0, 257 * 3, 257 * 128 + 40, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(shades).save(folder / name)
        loaded = ImageRef(path=folder / name).load()
        assert loaded.mode == "RGB"
        assert [loaded.getpixel((x, 0)) for x in range(4)] == [(g, g, g) for g in (0, 3, 128, 255)]
    header = f"P5 {shades.shape[1]} 1 65535\n".encode()
    (folder / "deep.pgm").write_bytes(header + shades.astype(">u2").tobytes())
    assert ImageRef(path=folder / "deep.pgm").load().getpixel((2, 0)) == (128, 128, 128)


def test_grey_of_an_unknown_range_is_refused(folder: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5], [1e6, 3.0]], np.float32)).save(folder / "float.tif")
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(folder / "wide.tif")
    Image.fromarray(np.array([[0, 200]], np.int32)).save(folder / "bytes.tif")
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(folder / "unit.tif")
    for name in ("float.tif", "wide.tif", "unit.tif"):
        with pytest.raises(DataError, match="image cannot be decoded; found grey values from 0 to"):
            ImageRef(path=folder / name).load()
    assert ImageRef(path=folder / "bytes.tif").load().getpixel((1, 0)) == (200, 200, 200)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_turns_as_pillow_turns_it(orientation: int, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((40, 20), 50).save(folder / "turned.png", exif=exif)
    with Image.open(folder / "turned.png") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert ImageRef(path=folder / "turned.png").load().tobytes() == expected.tobytes()


def test_a_broken_tag_beside_the_orientation_does_no_harm(folder: Path) -> None:
    def tags(kind: int, numerator: int, denominator: int) -> bytes:
        """EXIF of two tags: an orientation, and a resolution of some type."""
        orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
        resolution = struct.pack(">HHII", 0x011A, kind, 1, 38)
        ratio = struct.pack(">II", numerator, denominator)
        return b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + orientation + resolution + bytes(4) + ratio

    rational, signed, double = 5, 10, 12
    broken = [tags(rational, 72, 0), tags(rational, 0, 0), tags(signed, 72, 0)]
    broken += [tags(double, 0xFFFFFFFF, 0)]  # which is not a number
    for number, exif in enumerate(broken):
        for name in (f"{number}.png", f"{number}.jpg"):
            Image.new("RGB", (40, 20)).save(folder / name, exif=exif)
            assert ImageRef(path=folder / name).load().size == (20, 40)
    with Image.open(folder / "3.png") as image, pytest.raises(ValueError, match="NaN"):
        ImageOps.exif_transpose(image)


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(folder: Path) -> None:
    def declaring(width: int, height: int) -> bytes:
        """A PNG file of one pixel that declares more of them."""
        Image.new("1", (1, 1)).save(folder / "small.png")
        content = (folder / "small.png").read_bytes()
        header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]

    (folder / "bomb.png").write_bytes(declaring(13_000, 13_000))
    with pytest.raises(DataError, match=r"more than 89,478,485 pixels; found 13000 × 13000"):
        ImageRef(path=folder / "bomb.png").load(where="train.jsonl:1")
    (folder / "bomb.png").write_bytes(declaring(20_000, 20_000))
    with pytest.raises(DataError, match=r"image cannot be decoded; found Image size .400000000"):
        ImageRef(path=folder / "bomb.png").load()


def test_a_format_that_a_program_would_decode_is_refused(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "page.eps")
    (folder / "page.png").write_bytes((folder / "page.eps").read_bytes())
    for name in ("page.eps", "page.png"):
        with pytest.raises(DataError, match="Ghostscript, a program, would decode; found EPS"):
            ImageRef(path=folder / name).load()


def test_a_pipe_in_place_of_an_image_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert not ImageRef(path=folder / "pipe.png").exists()
    with pytest.raises(DataError, match="image file cannot be read; found a pipe or a device"):
        ImageRef(path=folder / "pipe.png").load()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damage_anywhere_in_a_file_is_one_error_or_none(kind: str, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    Image.effect_noise((16, 12), 50).convert("RGB").save(folder / "sound", kind, **options)
    sound = (folder / "sound").read_bytes()
    generator = np.random.default_rng(7)
    for _ in range(60):
        content = bytearray(sound)
        for position in generator.integers(0, min(len(content), 400), 3):
            content[position] ^= int(generator.integers(1, 256))
        assert _outcome(ImageRef(data=bytes(content), max_pixels=10_000)) in ("RGB", "one error")


def _outcome(image: ImageRef) -> str:
    try:
        return image.load(where="row").mode
    except DataError as error:
        is_one = str(error).startswith("row, embedded image: ") and "\n" not in str(error)
        return "one error" if is_one else str(error)
