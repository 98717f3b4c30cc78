"""The table of all families in docs/models.md, and that it is still true."""

from __future__ import annotations

import random

import pytest

from support.enumeration import FAMILIES, Family, judge, read_table

NUM_SAMPLED = 12

# A family without a tiny configuration says nothing about the library.
JUDGED = [family for family, row in read_table().items() if "no tiny configuration" not in row]
SAMPLE = random.Random(0).sample(JUDGED, NUM_SAMPLED)


def test_the_table_names_every_family_of_both_mappings() -> None:
    assert tuple(read_table()) == FAMILIES


@pytest.mark.parametrize("family", SAMPLE, ids=lambda family: family.model_type)
@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_the_table_is_true(family: Family) -> None:
    assert judge(family) == read_table()[family]
