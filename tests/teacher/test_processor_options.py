"""Options of a processor reach the tokens, the cache's identity and the saved student."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from support.runs import make_recipe, with_section
from vlsi_cache.check import check_data
from vlsi_cache.errors import CacheMismatchError, ModelError
from vlsi_cache.models import load_processor
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher

OPTIONS = {"max_pixels": 256}


def test_options_are_part_of_what_a_cache_is_made_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_recipe(tmp_path, images=True, num_samples=4, stages=["finetuning"])
    data = Path(str(plain.data.path))
    text = data.read_text(encoding="utf-8").replace("The green one", "The <|im_end|> one")
    data.write_text(text, encoding="utf-8")
    small = with_section(
        with_section(plain, "teacher", processor=OPTIONS), "student", processor=OPTIONS
    )
    with caplog.at_level(logging.WARNING):
        cache = open_cache(dump_teacher(small))
    assert "1 sample spells control tokens" in caplog.text
    assert cache.manifest.processor_options == OPTIONS
    manifest = json.loads((small.output / "cache" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["processor_options"] == OPTIONS
    with pytest.raises(CacheMismatchError, match="processor_options"):
        dump_teacher(plain)
    with cache.processor_folder() as folder:
        recorded: Any = load_processor(str(folder))
    assert recorded.image_processor.size["longest_edge"] == 256
    student: Any = load_processor(str(train_student(small)))
    assert student.image_processor.size["longest_edge"] == 256


def test_a_manifest_without_options_is_as_it_was(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=4)
    dump_teacher(recipe)
    manifest = json.loads((recipe.output / "cache" / "manifest.json").read_text(encoding="utf-8"))
    assert "processor_options" not in manifest
    assert "revision" not in manifest["teacher"]


@pytest.mark.parametrize("options", [{"merge_size": 1}, {"patch_size": 4}])
def test_patches_that_the_model_does_not_take_are_one_line(
    options: dict[str, int], tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path, images=True, num_samples=4)
    changed = with_section(recipe, "teacher", processor=options)
    refused = r"does not take the images as its processor .*teacher\.processor"
    with pytest.raises(ModelError, match=refused):
        dump_teacher(changed)
    (name,) = options
    assert any(name in one.why for one in check_data(changed).failures)
    file = Path(str(recipe.teacher.model), "processor_config.json")
    saved = json.loads(file.read_text(encoding="utf-8"))
    saved["image_processor"] |= options
    file.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(ModelError, match=refused):
        dump_teacher(recipe)
