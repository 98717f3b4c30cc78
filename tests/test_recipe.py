"""The recipe: every problem at once with its path, and flags that override files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsi_cache.errors import RecipeError
from vlsi_cache.recipe import (
    CacheSection,
    Recipe,
    apply_overrides,
    find_completion,
    find_weight_completion,
    idle_settings,
    load_recipe,
    recipe_from_mapping,
)


@pytest.mark.parametrize("temperature", [1e-40, 1e-7, 1e7, 1e40, 0])
def test_a_temperature_that_float32_cannot_divide_by_is_refused(temperature: float) -> None:
    with pytest.raises(RecipeError, match=r"interaction\.matching\.temperature"):
        recipe_from_mapping(
            {"interaction": {"matching": {"temperature": temperature}}}, where="test"
        )


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    raw = {
        "cahe": {},
        "cache": {"k": "many", "m": -1},
        "student": {"taps": [1, 1]},
        "interaction": {"steps": 3, "epochs": 1, "matching": {"search_range": False}},
        "stages": ["dance"],
    }
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(raw, where="run.yaml")
    message = str(caught.value)
    first, *lines, last = message.split("\n")
    assert first == "run.yaml: recipe has 7 problems:"
    assert len(lines) == 7
    assert last.startswith("Every key is described in ")
    for path in (
        "cahe: unknown key, perhaps cache",
        "cache.k: ",
        "cache.m: ",
        "stages.0: ",
        "student.taps: names a block twice",
        "interaction.epochs: contradicts interaction.steps",
        "interaction.matching.order: needs search_range",
    ):
        assert sum(line.startswith(f"  {path}") for line in lines) == 1


@pytest.mark.parametrize(
    ("raw", "suggestion"),
    [
        ({"taps": [1]}, "taps: unknown key, perhaps teacher.taps or student.taps"),
        ({"cache": {"batch_sise": 3}}, "cache.batch_sise: unknown key, perhaps batch_size"),
        ({"cache": {"rank": 3}}, "cache.rank: unknown key, perhaps interaction.lora.rank"),
        ({"zzzz": 3}, "zzzz: unknown key"),
    ],
)
def test_an_unknown_key_comes_with_a_suggestion(raw: dict[str, Any], suggestion: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(raw, where="run.yaml")
    assert str(caught.value).startswith(f"run.yaml: recipe has 1 problem: {suggestion}. ")


def test_a_recipe_file_is_read_and_flags_override_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("teacher: {model: big}\ncache: {k: 8}\n", encoding="utf-8")
    recipe = load_recipe(path, ["cache.k=2", "student.model=small", "student.taps=[1, 5]"])
    assert (recipe.teacher.model, recipe.student.model) == ("big", "small")
    assert (recipe.cache.k, recipe.student.taps) == (2, [1, 5])


@pytest.mark.parametrize(
    ("cache", "meant"),
    [
        ({}, (4, 12, "whole")),
        ({"samples_per_shard": 7}, (4, 12, "whole")),
        ({"k": 0, "m": 14}, (0, 14, "rest")),
        ({"k": 4, "m": 4}, (4, 4, "rest")),
        ({"k": 4}, (4, 14, "rest")),
        ({"k": 0}, (0, 14, "rest")),
        ({"m": 16}, (0, 16, "rest")),
        ({"k": 16, "m": 0}, (16, 0, "rest")),
        ({"drawn_from": "rest"}, (0, 14, "rest")),
        ({"drawn_from": "whole"}, (4, 12, "whole")),
        ({"k": 8, "drawn_from": "whole"}, (8, 12, "whole")),
        ({"m": 20, "drawn_from": "whole"}, (4, 20, "whole")),
    ],
)
def test_a_record_that_is_given_in_part_means_what_it_meant_before_the_default_changed(
    cache: dict[str, Any], meant: tuple[int, int, str]
) -> None:
    found = recipe_from_mapping({"cache": cache}, where="run.yaml").cache
    assert (found.k, found.m, found.drawn_from) == meant
    assert CacheSection(**cache) == found
    assert CacheSection.model_validate(found.model_dump()) == found
    assignments = [f"cache.{name}={value}" for name, value in cache.items()]
    assert load_recipe(None, assignments).cache == found


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ({}, None),
        ({"samples_per_shard": 7}, None),
        ({"k": 4, "m": 4, "drawn_from": "rest"}, None),
        ({"k": 0, "m": 14}, None),
        ({"k": 8}, "k 8, m 14, drawn_from rest: the recipe gives cache.k without cache.m and"),
        ({"k": 4, "m": 12}, "k 4, m 12, drawn_from rest: the recipe gives cache.k and cache.m w"),
        ({"m": 16}, "k 0, m 16, drawn_from rest: the recipe gives cache.m without cache.k"),
        ({"drawn_from": "whole"}, "k 4, m 12, drawn_from whole: the recipe gives cache.drawn_from"),
        ({"k": 16, "drawn_from": "whole"}, "k 16, m 12, drawn_from whole"),
    ],
)
def test_a_record_that_follows_from_a_part_of_it_is_said(
    cache: dict[str, Any], said: str | None
) -> None:
    ways = [
        Recipe(cache=CacheSection(**cache)),
        recipe_from_mapping({"cache": cache}, where="run.yaml"),
        load_recipe(None, [f"cache.{name}={value}" for name, value in cache.items()]),
    ]
    for recipe in ways:
        found = find_completion(recipe)
        assert (found is None) == (said is None)
        assert found is None or found.startswith(f"the record is {said or ''}")
        rest = recipe.cache.drawn_from == "rest" and {"k"} <= cache.keys() and recipe.cache.m > 0
        assert ("takes fewer bytes" in (found or "")) == (rest and found is not None)


@pytest.mark.parametrize(
    ("interaction", "means", "said"),
    [
        ({}, (1.0, "all", True), None),
        ({"steps": 7}, (1.0, "all", True), None),
        ({"inner_weight": 1}, (1.0, "each", False), "1 for each and stays: the recipe gives"),
        ({"inner_weight_of": "all"}, (0.25, "all", False), "0.25 for all and stays"),
        (
            {"inner_schedule": {"until": 0.5}},
            (0.25, "each", True),
            "falls to 0 of that until 50% of",
        ),
        ({"output": "none"}, (0.25, "each", False), None),
        ({"inner_target": "output"}, (0.25, "each", False), None),
        ({"inner": "none"}, (1.0, "all", True), None),
        ({"inner": "none", "inner_weight": 1}, (1.0, "each", False), None),
    ],
)
def test_a_weight_of_the_taps_that_follows_from_a_part_of_it_is_said(
    interaction: dict[str, Any], means: tuple[float, str, bool], said: str | None
) -> None:
    recipe = recipe_from_mapping({"interaction": interaction}, where="run.yaml")
    section = recipe.interaction
    falls = section.inner_schedule is not None
    assert (section.inner_weight, section.inner_weight_of, falls) == means
    found = find_weight_completion(recipe)
    assert (found is None) == (said is None)
    assert (said or "") in (found or "")
    whole = recipe_from_mapping(recipe.model_dump(mode="json"), where="run.yaml")
    assert whole.interaction == section
    assert find_weight_completion(whole) is None


def test_without_taps_stage_two_is_what_it_was_before_their_weight_fell() -> None:
    by_default, given = (
        recipe_from_mapping({"interaction": {"inner": "none", **weight}}, where="run.yaml")
        for weight in ({}, {"inner_weight": 0.25})
    )
    assert by_default.interaction.decisive() == given.interaction.decisive()


def test_a_tilde_is_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe(None, ["teacher.model=~/big", "output=~/run", "data.path=owner/~name"])
    assert recipe.teacher.model == str(tmp_path / "big")
    assert (recipe.output, recipe.data.path) == (tmp_path / "run", "owner/~name")


def test_no_recipe_and_no_flags_give_the_defaults() -> None:
    assert load_recipe(None) == Recipe()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "is not YAML"),
        ("seed: 1\ncache: {k: 1}\nseed: 2\n", "the key 'seed' is given twice at line 3"),
        ("cache: {k: 1, k: 2}\n", "the key 'k' is given twice at line 1, column 15"),
        ("cache:\n\tk: 1\n", "Indent with spaces: YAML takes no tabs"),
        ("seed: 1\n---\nseed: 2\n", "found another document at line 2"),
        ("- 1\n- 2\n", "is not a mapping"),
        ("interaction: 3\n", "interaction: "),
        ("seed: null\n", "seed: "),
        ("stages: []\n", "stages: is empty"),
        ("stages: [interaction]\n", "without verbalization"),
        ("finetuning: {final_learning_rate: 1.0}\n", "needs learning_rate: give both"),
        ("finetuning: {learning_rate: 0.5, final_learning_rate: 1}\n", "is above learning_rate"),
        ("finetuning: {learning_rate: .inf}\n", "finetuning.learning_rate: "),
        (
            "finetuning: {steps: 3, warmup_steps: 4}\n",
            "finetuning.warmup_steps: is above finetuning.steps",
        ),
        ("stages: [finetuning, finetuning]\n", "stages: names a stage twice"),
        ("student: {dtype: float16}\n", "student.dtype: float16 cannot be trained"),
        (
            "interaction: {matching: {search_range: false}}\n",
            "interaction.matching.order: needs search_range",
        ),
        (
            "interaction: {matching: {strategy: shortest, order: false}}\n",
            "interaction.matching.strategy: shortest needs order",
        ),
        ("seed: -1\n", "seed: "),
        ("seed: 5000000000\n", "seed: "),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"run\.yaml") as caught:
        load_recipe(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_stands_in_a_recipes_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (tmp_path / "wide.yaml").write_bytes("seed: 1".encode("utf-16"))
    for name, problem in (
        ("", "a recipe is a file of YAML; found .*, a folder"),
        ("rows.jsonl", "this is data, and a recipe is wanted"),
        ("picture.yaml", "recipe is not text, but a PNG picture"),
        ("wide.yaml", "recipe is not text, but UTF-16 or UTF-32"),
    ):
        with pytest.raises(RecipeError, match=problem):
            load_recipe(tmp_path / name)


def test_a_recipe_may_share_sections_and_come_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = "interaction: &shared {steps: 3}\nfinetuning: {<<: *shared, batch_size: 2}\n"
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    recipe = load_recipe(pipe)
    writer.join()
    assert (recipe.interaction.steps, recipe.finetuning.steps) == (3, 3)
    assert recipe.finetuning.batch_size == 2


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: recipe not found"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("assignment", ["k", "=3", "cache.k.x=1", "cache=[", "seed.a=1"])
def test_a_bad_override_is_named(assignment: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(
            apply_overrides({"cache": {"k": 1}, "seed": 0}, [assignment]), where="f"
        )
    assert assignment.split("=")[0].split(".")[-1] in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["k", "taps", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), _JSON, max_size=4))
def test_any_mapping_is_either_a_recipe_or_a_named_problem(raw: dict[str, object]) -> None:
    try:
        message = repr(recipe_from_mapping(raw, where="raw"))
    except RecipeError as error:
        first, *more = str(error).split("\n")
        assert all(line.startswith("  ") for line in more[:-1])
        message = first
    assert "\n" not in message


def test_every_field_of_the_recipe_is_described() -> None:
    def undescribed(schema: dict[str, object]) -> list[str]:
        fields = schema.get("properties", {})
        assert isinstance(fields, dict)
        return [name for name, field in fields.items() if "description" not in field]

    schema = Recipe.model_json_schema()
    assert undescribed(schema) == []
    for name, section in schema["$defs"].items():
        assert undescribed(section) == [], name


@pytest.mark.parametrize(
    ("role", "raw", "reported"),
    [
        (
            "student",
            {"interaction": {"inner": "ce", "matching": {"granularity": "sample"}}},
            ["interaction.matching.granularity has no effect: interaction.inner is ce"],
        ),
        (
            "student",
            {"interaction": {"skew": 0.3, "matching": {"strategy": "shortest", "temperature": 2}}},
            [
                "interaction.matching.temperature has no effect: shortest has none",
                "interaction.skew has no effect: neither inner nor output is skewed",
            ],
        ),
        (
            "student",
            {"interaction": {"follow_timeout_seconds": 9.0}, "student": {"verbalizers": "v"}},
            ["interaction.follow_timeout_seconds has no effect: interaction.follow is false"],
        ),
        (
            "student",
            {
                "student": {"verbalizers": "v", "verbalization": {"steps": 9}},
                "stages": ["finetuning"],
            },
            ["student.verbalization has no effect: student.verbalizers are trained already"],
        ),
        (
            "teacher",
            {"cache": {"max_failures_in_a_row": 3}, "interaction": {"skew": 0.3}},
            ["cache.max_failures_in_a_row has no effect: cache.on_error is stop"],
        ),
        (
            "student",
            {"interaction": {"matching": {"strategy": "uniform", "granularity": "sample"}}},
            ["interaction.matching.granularity has no effect: the pairs of uniform are fixed"],
        ),
        (
            "student",
            {
                "interaction": {
                    "matching": {"temperature": "scale_free", "adaptive_temperature": False}
                }
            },
            [
                "interaction.matching.temperature has no effect: "
                "interaction.matching.adaptive_temperature is false"
            ],
        ),
        (
            "student",
            {"interaction": {"matching": {"temperature": 3, "adaptive_temperature": False}}},
            [
                "interaction.matching.adaptive_temperature has no effect: "
                "interaction.matching.temperature is a number"
            ],
        ),
        (
            "student",
            {"interaction": {"inner": "none", "output": "ce", "tail": "bucket"}},
            [
                "interaction.tail has no effect: "
                "neither inner nor output reads the teacher's distributions"
            ],
        ),
        (
            "student",
            {"interaction": {"inner": "none"}, "student": {"verbalizers": "v"}},
            ["student.verbalizers has no effect: interaction.inner is none"],
        ),
        (
            "student",
            {"interaction": {"output": "none", "gradients_every": 5}},
            [
                "interaction.gradients_every has no effect: it compares the gradients of inner and "
                "output, and one of them is none"
            ],
        ),
        ("student", {"interaction": {"skew": 0.3}, "stages": ["finetuning"]}, []),
        ("student", {"interaction": {"skew": 0.1, "lora": None}}, []),
    ],
)
def test_settings_without_effect_are_reported(
    role: Literal["teacher", "student"], raw: dict[str, Any], reported: list[str]
) -> None:
    assert idle_settings(recipe_from_mapping(raw, where="test"), role) == reported


def test_gradients_that_one_process_alone_measures_are_said_of_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_from_mapping({"interaction": {"gradients_every": 5}}, where="test")
    assert idle_settings(recipe, "student") == []
    monkeypatch.setenv("WORLD_SIZE", "2")  # as launchers set it
    (found,) = idle_settings(recipe, "student")
    assert found == (
        "interaction.gradients_every has no effect: it is measured where one process trains"
    )


def test_an_error_names_the_keys_of_a_section_that_is_not_a_mapping() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping({"interaction": {"inner_schedule": 0.3, "lora": 4}}, where="test")
    said = str(caught.value)
    assert "interaction.inner_schedule: should be a mapping with keys such as until, end" in said
    assert "interaction.lora: should be a mapping with keys such as rank, alpha" in said
    assert "Section" not in said
