"""The table of all families in docs/models.md, and that it is still true."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from support.enumeration import FAMILIES, Family, judge, read_table
from vlsi_cache.errors import ModelError
from vlsi_cache.models import load_model

NUM_SAMPLED = 12
WITHOUT_TIMM = Family("gemma3n", sees_images=True)

SAMPLE = random.Random(0).sample(list(read_table()), NUM_SAMPLED)


def test_the_table_names_every_family_of_both_mappings() -> None:
    assert tuple(read_table()) == FAMILIES


def test_every_family_has_a_verdict() -> None:
    assert [
        row for row in read_table().values() if "bound" not in row and "refused" not in row
    ] == []


@pytest.mark.parametrize("family", SAMPLE, ids=lambda family: family.model_type)
@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_the_table_is_true(family: Family) -> None:
    assert judge(family) == read_table()[family]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family",
    [Family("fast_vlm", sees_images=True), Family("evolla", sees_images=True), WITHOUT_TIMM],
    ids=lambda family: family.model_type,
)
def test_families_that_want_other_packages_have_true_rows(family: Family) -> None:
    assert judge(family) == read_table()[family]


def test_a_package_that_a_family_lacks_is_named_in_one_line(tmp_path: Path) -> None:
    config: Any = CONFIG_MAPPING[WITHOUT_TIMM.model_type]()
    config.save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match="requires the timm library but it was not found"
    ) as caught:
        load_model(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1
    assert "requires the timm library" in read_table()[WITHOUT_TIMM]
