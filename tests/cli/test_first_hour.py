"""What a new user types in the first hour is understood, or answered with what to type."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from support.runs import make_recipe, save_text_model, write_conversations
from vlsi_cache.cli.main import cli
from vlsi_cache.cli.next_step import Given, keys_of_flags, next_command, remember_given
from vlsi_cache.errors import CacheError, DataError, ModelError, RecipeError
from vlsi_cache.plan.planning import not_planned
from vlsi_cache.plan.rehearsing.sketch import read_sketch
from vlsi_cache.recipe import (
    Recipe,
    TeacherSection,
    apply_overrides,
    load_recipe,
    recipe_from_mapping,
    validate_model_folder,
)
from vlsi_cache.student.checks import training_checks
from vlsi_cache.teacher import dump_teacher


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, [*map(str, arguments)])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return make_recipe(tmp_path_factory.mktemp("first-hour"), num_samples=4)


@pytest.fixture(scope="module")
def file(recipe: Recipe) -> Path:
    path = recipe.output.with_name("r.yaml")
    path.write_text(recipe.model_dump_json(), encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["check", "plan", "dump-teacher", "train-student"])
def test_a_recipe_stands_alone_or_behind_its_flag(command: str, tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    alone, flagged = _run(command, absent), _run(command, "--recipe", absent)
    assert alone.exit_code == flagged.exit_code == 2
    assert (
        alone.output
        == flagged.output
        == (
            f"error: {absent}: recipe not found; found no absent.yaml in {tmp_path}. "
            "Give a file of YAML.\n"
        )
    )
    twice = _run(command, absent, "--recipe", absent)
    assert "the recipe is given twice" in twice.output


def test_evaluate_says_that_a_recipe_is_no_model(file: Path) -> None:
    result = _run("evaluate", file)
    assert result.exit_code == 2
    assert f"{file} is a recipe, and MODEL is expected. Give it by --recipe" in result.output


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "GPU", "", "auto:0"])
def test_a_device_that_is_none_is_refused_at_once(device: str) -> None:
    with pytest.raises(RecipeError, match="device such as auto, cpu, cuda, cuda:0, mps or xpu"):
        load_recipe(None, [f"device='{device}'"])
    if device:
        result = _run("train-student", "--device", device)
        assert result.exit_code == 2
        assert "error: --device: is not the name of a device such as auto, cpu" in result.output


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps", "xpu:0"])
def test_a_device_keeps_its_name(device: str) -> None:
    assert load_recipe(None, [f"device={device}"]).device == device


@pytest.mark.parametrize(
    ("command", "option", "key"),
    [
        ("train-student", "--batch-tokens", "--set interaction.batch_tokens=VALUE"),
        ("dump-teacher", "--rank", "--set interaction.lora.rank=VALUE"),
        ("check", "--image-root", "--set data.image_root=VALUE"),
    ],
)
def test_an_unknown_option_is_answered_with_the_recipes_key(
    command: str, option: str, key: str
) -> None:
    result = _run(command, option, "8")
    assert result.exit_code == 2
    assert key in result.output
    assert "recipe has such a key" not in _run(command, "--nonsense", "8").output


@pytest.mark.parametrize(
    ("key", "suggested"),
    [
        ("teacher.tap", "perhaps taps"),
        ("student.tap", "perhaps taps"),
        ("cache.batch_token", "perhaps batch_tokens"),
        ("teacher.k", "perhaps cache.k"),
        ("student.steps", "perhaps teacher.verbalization.steps or"),
    ],
)
def test_a_misspelt_key_suggests_its_neighbour_first(key: str, suggested: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key}: unknown key, {suggested}"):
        load_recipe(None, [f"{key}=2"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("teacher.taps=2,4", r"should be a list, found '2,4': write \[2,4\]"),
        ("stages=interaction", r"found 'interaction': write \[interaction\]"),
        ("data.limit=yes", "should be a whole number, found True"),
        ("interaction.lora=none", "such as rank, .* or null for none, found 'none'"),
        ("output=3", "output: should be a path, found 3"),
        ("teacher.max_memory=80GB", "should be a mapping, found '80GB'"),
        ("teacher.taps=[1,", r"is not YAML\. Quote what the shell would part or change"),
    ],
)
def test_a_value_of_another_kind_says_how_it_is_written(assignment: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(None, [assignment])


def test_a_recipe_is_found_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("cahe: {}", encoding="utf-8")
    for given in (["~/r.yaml"], ["--recipe", "~/r.yaml"], ["--recipe=~/r.yaml"]):
        assert f"error: {tmp_path}/r.yaml: recipe has 1 problem" in _run("check", *given).stderr


def test_a_recipe_from_another_folder_says_where_its_paths_begin(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recipe.output.parent
    file = folder / "relative.yaml"
    file.write_text(
        "teacher: {model: ./teacher}\ndata: {path: data.jsonl}\noutput: run\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    result = _run("dump-teacher", file)
    assert result.exit_code == 1
    *_, last = result.stderr.splitlines()
    assert last == (
        f"note: paths in a recipe begin at the folder that you are in, which is {tmp_path}. "
        f"Beside the recipe there is ./teacher and data.jsonl: run cd {folder} first"
    )
    monkeypatch.chdir(folder)
    assert "note:" not in _run("dump-teacher", "relative.yaml", "--limit", 0).stderr


def test_a_path_without_its_option_is_answered_with_the_option(
    recipe: Recipe, tmp_path: Path
) -> None:
    data = recipe.data.path
    result = _run("evaluate", "model", data)
    assert result.exit_code == 2
    assert f"Perhaps --data {data} is meant" in result.output
    assert "Perhaps" not in _run("evaluate", "model", "absent").output


def test_a_bare_number_is_no_memory(file: Path) -> None:
    result = _run("plan", file, "--memory", "80")
    assert result.exit_code == 2
    assert "80 would be bytes: write 80GB or 80GiB" in result.output


def test_a_page_is_written_over_no_other_file(recipe: Recipe, tmp_path: Path) -> None:
    mine = tmp_path / "data.jsonl"
    mine.write_text("{}\n", encoding="utf-8")
    result = _run("inspect", tmp_path, "--html", mine)
    assert result.exit_code == 1
    assert f"{mine}: a page would be written over this file; found 3 bytes of" in result.stderr
    assert mine.read_text(encoding="utf-8") == "{}\n"
    for begins in ("", "<!DOCTYPE html>\n<html>"):
        mine.write_text(begins, encoding="utf-8")
        assert "neither a cache nor a run" in _run("inspect", tmp_path, "--html", mine).stderr


def test_a_folder_of_models_names_the_models_in_it(tmp_path: Path) -> None:
    for name in ("large", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=rf"found large, small\. .* such as {tmp_path}/large"):
        validate_model_folder(str(tmp_path))
    deep = tmp_path / "snapshots"
    (deep / "abc").mkdir(parents=True)
    (deep / "abc" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="found abc"):
        validate_model_folder(str(deep))
    (tmp_path / "config.json").write_text("{}")
    validate_model_folder(str(tmp_path))  # a model with others in it
    validate_model_folder(str(tmp_path / "large"))


def test_the_next_command_leaves_out_what_it_does_not_read() -> None:
    given = ("teacher.dtype=float32", "cache.k=8", "finetuning.steps=2", "cache.path=c")
    with click.Context(cli):
        remember_given(Given(None, given, {}))
        assert next_command("train-student", {}) == (
            "vlsi-cache train-student --set finetuning.steps=2 --set cache.path=c"
        )
        assert "teacher.dtype" in next_command("dump-teacher", {})


def test_the_next_commands_keep_a_student_until_it_is_trained() -> None:
    flags = {"student.model": "my student", "teacher.model": "t", "data.on_error": "skip"}
    with click.Context(cli):
        remember_given(Given(Path("my recipes/r.yaml"), ("seed=1",), flags))
        dump = next_command("dump-teacher", {"--taps": "1,3"})
        assert dump == (
            "vlsi-cache dump-teacher --recipe 'my recipes/r.yaml' --teacher t --taps 1,3 "
            "--on-error skip --set seed=1 --set 'student.model=my student'"
        )
        assert next_command("plan", {}).endswith("--set seed=1 --set data.on_error=skip")
        remember_given(Given(None, ("student.model=my student", "cache.m=9"), {"cache.k": 2}))
        assert next_command("train-student", {}) == (
            "vlsi-cache train-student --student 'my student'"
        )


@pytest.mark.parametrize("following", ["plan", "dump-teacher", "train-student"])
@pytest.mark.parametrize("name", ["check", "plan", "dump-teacher", "train-student"])
def test_the_next_command_has_only_options_that_it_knows(name: str, following: str) -> None:
    before = cli.get_command(click.Context(cli), name)
    after = cli.get_command(click.Context(cli), following)
    assert before is not None
    assert after is not None
    keys = keys_of_flags(before)
    texts = {"data.path": "a: b", "output": "yes", "cache.path": "[c"}
    given = {key: texts.get(key, "x") for key in keys}
    if "interaction.follow" in keys:
        given["interaction.follow"] = True
    with click.Context(cli):
        remember_given(Given(None, (), given))
        words = shlex.split(next_command(following, {}))
    parser = after.make_parser(click.Context(after))
    typed, rest, _ = parser.parse_args(words[2:])
    assert rest == []
    raw = apply_overrides({}, typed.get("assignments", []))
    for key in ("data.path", "output"):
        section, _, last = key.rpartition(".")
        if key in keys and key not in keys_of_flags(after):
            assert (raw[section] if section else raw)[last] == texts[key]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["cache.hidden={}"], "interaction.hidden={}"),
        (["cache.hidden.bits=64"], "interaction.hidden={}"),
        (["cache.hidden={}", "interaction.hidden.weight=2"], "interaction.hidden.weight=2"),
        (["cache.hidden=null"], None),
    ],
)
def test_the_next_command_learns_a_hidden_state_that_was_recorded(
    given: list[str], wanted: str | None
) -> None:
    with click.Context(cli):
        remember_given(Given(None, tuple(given), {}))
        words = ["vlsi-cache", "train-student", *(["--set", wanted] if wanted else [])]
        assert next_command("train-student", {}) == shlex.join(words)


def test_the_first_bad_row_names_the_check_and_the_flag(recipe: Recipe, tmp_path: Path) -> None:
    raw = json.loads(recipe.model_dump_json())
    raw["output"] = str(tmp_path / "run")
    raw["data"]["path"] = str(tmp_path / "rows.jsonl")
    write_conversations(tmp_path / "rows.jsonl", 4)
    advice = r"`vlsi-cache check` lists all such rows .* --on-error skip leaves them out"
    raw["data"]["max_length"] = 8
    with pytest.raises(DataError, match=advice):
        dump_teacher(recipe_from_mapping(raw, where="test"))
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write('{"caption": "no conversation"}\n')
    with pytest.raises(DataError, match=advice):
        dump_teacher(recipe_from_mapping(raw, where="test"))


def test_a_check_lists_settings_without_effect(recipe: Recipe) -> None:
    raw = json.loads(recipe.model_dump_json())
    raw["interaction"] |= {"inner": "none", "inner_schedule": {"until": 0.5}}
    path = recipe.output.with_name("idle.yaml")
    path.write_text(json.dumps(raw), encoding="utf-8")
    found = "interaction.inner_schedule has no effect: interaction.inner is none"
    result = _run("check", path)
    assert result.exit_code == 0, result.output
    assert found in result.output
    assert found in json.loads(_run("check", path, "--json").stdout)["idle_settings"]


def test_learning_from_the_record_without_a_cache_says_why_it_needs_one(
    recipe: Recipe, tmp_path: Path
) -> None:
    raw = json.loads(recipe.model_dump_json())
    raw |= {"stages": ["finetuning"], "output": str(tmp_path)}
    raw["finetuning"]["record_weight"] = 0.5
    first, *_ = training_checks(recipe_from_mapping(raw, where="test"))
    with pytest.raises(
        CacheError, match=r"record_weight above 0, stage three learns the teacher's"
    ):
        first()


@pytest.fixture(scope="module")
def last_stage(recipe: Recipe) -> Path:
    """One stage alone, whose plan takes a few seconds."""
    raw = json.loads(recipe.model_dump_json())
    raw |= {"stages": ["finetuning"], "teacher": {}}
    raw["student"]["taps"] = None
    path = recipe.output.with_name("last.yaml")
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def test_a_plan_follows_the_bound_on_tokens_and_says_what_it_tries(last_stage: Path) -> None:
    result = _run("plan", last_stage, "--json", "--memory", "80GB", "--max-length", 900)
    (plain,) = json.loads(result.stdout)["stages"]
    assert plain["batch"][0] == 4
    less = plain["device_bytes"] - plain["working_bytes"] // 4
    tight = _run("plan", last_stage, "--memory", less)
    assert "trying finetuning.batch_size: 2, finetuning.gradient_accumulation: 2" in tight.stderr
    longest = json.loads(result.stdout)["longest"]
    bound = f"finetuning.batch_tokens={2 * longest}"
    result = _run("plan", last_stage, "--json", "--memory", "80GB", "--set", bound)
    (bounded,) = json.loads(result.stdout)["stages"]
    assert bounded["batch"][0] == 2
    assert bounded["working_bytes"] < plain["working_bytes"]
    kernel = "student.attn_implementation=eager"
    result = _run("plan", last_stage, "--json", "--memory", "80GB", "--set", kernel)
    (eager,) = json.loads(result.stdout)["stages"]
    assert eager["working_bytes"] > plain["working_bytes"], "it holds tokens × tokens"


def test_a_plan_notes_what_it_does_not_follow(recipe: Recipe) -> None:
    given = {"model": recipe.teacher.model, "quantization": {"quant_method": "bitsandbytes"}}
    sketch = read_sketch(recipe.teacher, "teacher")
    assert not_planned("teacher", sketch) == []
    asked = TeacherSection(**given, attn_implementation="flash_attention_2")
    quantised, kernel = not_planned("teacher", replace(sketch, section=asked))
    assert quantised.startswith("teacher: weights are counted at full width")
    assert kernel.endswith("with scaled dot products, and not with flash_attention_2")


def test_a_plan_takes_taps(file: Path) -> None:
    result = _run("plan", file, "--taps", "99")
    assert result.exit_code == 1
    assert "99" in result.stderr.splitlines()[-1]


def test_answers_that_are_cut_short_are_said(recipe: Recipe, tmp_path: Path) -> None:
    model = save_text_model(tmp_path / "model", num_layers=2)
    result = _run("evaluate", model, "--data", recipe.data.path, "--generate", 2)
    assert result.exit_code == 0, result.output
    assert "4 of 4 recorded answers are longer than the 2 tokens of --generate" in result.stderr
