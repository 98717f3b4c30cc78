"""A plan's counts, its cache's size, what does not fit and what mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from transformers import BertConfig

from support.runs import changed, make_recipe, with_section
from vlsi_cache import dump_teacher
from vlsi_cache.check import check_data
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import RecipeError, StageError
from vlsi_cache.plan import Machines, Plan, plan_run
from vlsi_cache.plan.mending import NAMED_KEYS, has_key
from vlsi_cache.plan.reading import read_lengths
from vlsi_cache.plan.rehearsing.formulae import USABLE, bytes_per_token_and_tap
from vlsi_cache.plan.rehearsing.rehearsal import Rehearsed, Setting
from vlsi_cache.plan.rehearsing.sketch import read_sketch
from vlsi_cache.plan.rehearsing.steps import Batch, PlannedStageName
from vlsi_cache.plan.spreading import (
    SPREADS,
    Counts,
    as_recipe_spreads,
    host_bytes,
    is_open,
    spreads,
)
from vlsi_cache.recipe import CacheSection, InteractionSection, Recipe
from vlsi_cache.store import open_cache
from vlsi_cache.teacher import Partition


def _folder_bytes(path: str | Path) -> int:
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def _written(recipe: Recipe, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(recipe.model_dump_json())), encoding="utf-8")
    return path


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli, ["plan", *map(str, arguments)])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of one stage, interaction at the output alone, on text."""
    made = make_recipe(tmp_path_factory.mktemp("small"), interaction={"inner": "none"})
    teacher = Recipe().teacher
    return made.model_copy(update={"teacher": teacher, "stages": ["interaction"]})


def test_counts_are_those_of_a_check(tmp_path: Path) -> None:
    made = make_recipe(tmp_path, images=True, interaction={"inner": "none"})
    recipe = made.model_copy(update={"teacher": Recipe().teacher, "stages": ["interaction"]})
    plan, report = plan_run(recipe), check_data(recipe)
    assert (plan.samples, plan.rows_read) == (report.rows, report.rows)
    assert plan.tokens == report.tokens
    assert plan.response_tokens == report.response_tokens
    assert plan.longest == report.longest
    assert plan.notes == []
    assert plan.stages[0].working_bytes > 0


def test_a_model_that_reads_later_tokens_is_refused(small: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    shutil.copytree(str(small.student.model), folder)
    config = BertConfig(architectures=["BertForMaskedLM"])
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    recipe = with_section(small, "student", model=str(folder))
    found = _run(_written(recipe, tmp_path))
    assert found.exit_code == 1
    assert "a masked language model, which reads later tokens" in found.output
    assert "Traceback" not in found.output


def test_some_rows_stand_for_all(small: Recipe) -> None:
    plan, report = plan_run(small, most_rows=5), check_data(small)
    assert (plan.samples, plan.rows_read) == (12, 5)
    assert plan.response_tokens == pytest.approx(report.response_tokens, rel=0.3)
    assert plan.notes == ["tokens are extrapolated from 5 of 12 rows, evenly spread over the data"]


def _teacher_alone(folder: Path, record: dict[str, Any], start: str) -> Recipe:
    settings = {"samples_per_shard": 100, "batch_size": 50, **record}
    made = make_recipe(folder, num_samples=200, cache=settings)
    verbalizer = made.teacher.verbalizer.model_copy(update={"start": start})
    teacher = made.teacher.model_copy(update={"verbalizer": verbalizer})
    return made.model_copy(update={"student": Recipe().student, "teacher": teacher})


@pytest.mark.parametrize(
    ("record", "start"),
    [
        ({}, "logit_lens"),
        ({"hidden": {}}, "logit_lens"),
        ({"k": 0, "m": 14}, "logit_lens"),
        ({"k": 4, "m": 4}, "ridge"),
    ],
    ids=["the default", "a hidden state", "draws", "draws of the rest"],
)
def test_the_size_of_a_cache_is_foretold(
    record: dict[str, Any], start: str, tmp_path: Path
) -> None:
    recipe = _teacher_alone(tmp_path, record, start)
    planned = plan_run(recipe)
    assert not planned.cache_bytes_measured
    dump_teacher(recipe)
    assert planned.cache_bytes == pytest.approx(_folder_bytes(recipe.cache_path), rel=0.15)


def test_a_cache_that_is_half_made_foretells_its_own_size(tmp_path: Path) -> None:
    recipe = _teacher_alone(tmp_path, {}, "ridge")
    dump_teacher(recipe, partition=Partition(1, 2))
    plan = plan_run(recipe)
    assert plan.cache_bytes_measured
    assert plan.samples_recorded == 100
    assert [stage.done for stage in plan.stages] == [True, False]
    dump_teacher(recipe)
    on_disk = _folder_bytes(recipe.cache_path)
    assert plan.cache_bytes == pytest.approx(on_disk, rel=0.05)
    assert plan_run(recipe).cache_bytes == open_cache(recipe.cache_path).verify().num_bytes
    assert open_cache(recipe.cache_path).size_bytes(processor=True) == on_disk


def test_the_sizes_of_records_are_those_that_were_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    measured = {(0, 8): 7.5, (0, 12): 9.9, (0, 14): 11.0, (0, 16): 12.0, (4, 4): 20.0}
    together = {10: 12.0, 11: 12.5, 12: 13.0, 13: 13.4, 14: 13.9}
    settings = [(CacheSection(k=k, m=m), size) for (k, m), size in measured.items()]
    settings += [(CacheSection(m=m, drawn_from="whole"), size) for m, size in together.items()]
    for section, size in settings:
        assert f"| {size} |" in page.replace("**", "")
        assert bytes_per_token_and_tap(section) == pytest.approx(size, rel=0.05)


def test_what_does_not_fit_is_mended_by_the_setting_that_is_named(small: Recipe) -> None:
    (stage,) = plan_run(small).stages
    memory = round((stage.device_bytes - 0.4 * stage.working_bytes) / USABLE)
    plan = plan_run(small, Machines(memory_bytes=memory))
    assert plan.fits is False
    (mend,) = plan.stages[0].mends
    assert mend.fits
    changes = dict(change.split(": ") for change in mend.setting.split(", "))
    size, times = (
        int(changes[f"interaction.{name}"]) for name in ("batch_size", "gradient_accumulation")
    )
    settings = small.interaction
    assert size < settings.batch_size
    assert size * times == settings.batch_size * settings.gradient_accumulation
    changed = settings.model_copy(update={"batch_size": size, "gradient_accumulation": times})
    mended = plan_run(
        small.model_copy(update={"interaction": changed}), Machines(memory_bytes=memory)
    )
    assert mended.fits
    assert mended.stages[0].device_bytes == mend.device_bytes


def test_weights_that_are_too_much_are_not_mended_by_a_smaller_batch(small: Recipe) -> None:
    plan = plan_run(small, Machines(memory_bytes=100_000))
    assert plan.fits is False
    assert not any(mend.fits or "batch" in mend.setting for mend in plan.stages[0].mends)


def test_a_student_that_is_too_large_for_any_batch_is_spread_with_a_smaller_one(
    small: Recipe,
) -> None:
    """Neither helps alone: the weights take too much, and so does what they are worked on."""
    recipe = small.model_copy(update={"stages": ["finetuning"]})
    (stage,) = plan_run(recipe).stages
    static = stage.device_bytes - stage.working_bytes
    plan = plan_run(recipe, Machines(memory_bytes=round(0.9 * static / USABLE)))
    first, *_, last = plan.stages[0].mends
    way = ", and accelerate launch with FSDP, over "
    for mend in (first, last):
        assert mend.fits
        assert mend.host_bytes is not None
        assert mend.setting.startswith("finetuning.")
        assert way in mend.setting
    assert "finetuning.batch_size: " in last.setting
    devices = [int(mend.setting.partition(way)[2].split()[0]) for mend in (first, last)]
    assert devices[0] > devices[1] > 1


def test_blocks_that_train_whole_are_mended_by_adapters(small: Recipe) -> None:
    settings = small.interaction.model_copy(update={"lora": None})
    recipe = small.model_copy(update={"interaction": settings})
    (stage,) = plan_run(recipe).stages
    memory = round(0.9 * stage.device_bytes / USABLE)
    plan = plan_run(recipe, Machines(memory_bytes=memory))
    assert "interaction.batch_size: 2" in plan.stages[0].mends[0].setting


def test_mends_name_keys_that_the_recipe_has() -> None:
    assert [key for key in NAMED_KEYS if not has_key(key)] == []
    assert not has_key("teacher.nonsense")
    assert not has_key("seed.nonsense")


FOUND = Rehearsed(
    weights=100,
    blocks=80,
    added=20,
    gradients=20,
    optimizer=40,
    working=4,
    operations=0.0,
    num_trained=5,
    batch=Batch(1, 8, 4),
    loaded=120,
)


def test_a_recipe_that_spreads_its_teacher_is_planned_so() -> None:
    def planned(devices: int, **keys: Any) -> Rehearsed:
        schedule = Recipe().teacher.verbalization.model_copy(
            update={"taps_at_once": keys.pop("taps_at_once", None)}
        )
        teacher = Recipe().teacher.model_copy(update={"verbalization": schedule, **keys})
        recipe = Recipe().model_copy(update={"teacher": teacher})
        return as_recipe_spreads(FOUND, recipe, "teacher-verbalization", devices, 4)

    assert planned(4) == FOUND
    assert planned(4, device_map="auto").peak == 180 // 4 + 4
    assert planned(4, tensor_parallel=4).peak == (80 + 80) // 4 + 20 + 4
    assert planned(1, taps_at_once=1).peak == 100 + 80 // 4 + 4
    assert planned(1, taps_at_once=4) == FOUND


def _ways(
    stage: PlannedStageName, opens: Callable[[str], bool], counts: Counts | None = None
) -> dict[str, int]:
    found = spreads(stage, FOUND, 65, 4, counts or Counts(), opens)
    return {text: size for _, text, size in found}


def test_a_stage_is_spread_by_what_is_open_alone() -> None:
    known = _ways("teacher-verbalization", lambda key: True)
    assert known == {
        "teacher.verbalization.taps_at_once: 1": 100 + 80 // 4 + 4,
        "teacher.device_map: auto, over 4 devices": 180 // 4 + 4,
        "teacher.tensor_parallel: 4, over 4 devices": 20 + (80 + 80) // 4 + 4,
        "teacher.tensor_parallel: 4, teacher.verbalization.taps_at_once: 1, over 4 devices": 49,
    }
    known = _ways("teacher-pass", lambda key: True)
    assert known["teacher.tensor_parallel: 64, over 64 devices"] == round(80 / 64 + 100 + 4)
    assert _ways("teacher-verbalization", lambda key: False) == {}
    assert all(has_key(key) for needs, *_ in SPREADS for key in needs)


def test_a_way_names_the_numbers_of_devices_that_can_be_had() -> None:
    known = _ways("teacher-pass", lambda key: True, Counts((8, 16), (8,)))
    assert list(known) == [
        "teacher.device_map: auto, over 8 devices",
        "teacher.tensor_parallel: 8, over 8 devices",
    ]
    known = _ways("teacher-pass", lambda key: True, Counts((8,), ()))
    assert list(known) == ["teacher.device_map: auto, over 8 devices"]


def test_a_teacher_that_lies_over_several_devices_is_not_divided_again() -> None:
    key = "teacher.tensor_parallel"
    assert is_open(Recipe(), key)
    for given in ({"device_map": "auto"}, {"tensor_parallel": 2}):
        recipe = Recipe(teacher=Recipe().teacher.model_copy(update=given))
        assert not is_open(recipe, key)
        assert not is_open(recipe, "teacher.device_map")
        assert is_open(recipe, "teacher.verbalization.taps_at_once")


def test_heads_decide_over_how_many_processes_a_teacher_can_be_split(small: Recipe) -> None:
    sketch = read_sketch(small.student, "student")
    text = sketch.fresh_config().get_text_config(decoder=True)
    counts = (text.num_attention_heads, text.num_key_value_heads)
    found = sketch.dividing_heads((2, 4, 8))
    assert found
    assert found == tuple(n for n in (2, 4, 8) if not any(count % n for count in counts))


def test_sharding_a_student_states_what_the_first_host_holds() -> None:
    """Either weights and what is added, or what trains beside AdamW's two means, in float32."""
    there = Setting(Recipe(), torch.device("cuda"), 4, 1, fsdp=True)
    assert host_bytes(FOUND, there, "finetuning") == 120
    learned = replace(FOUND, num_trained=100)
    assert host_bytes(learned, there, "finetuning") == 12 * 100
    assert host_bytes(learned, replace(there, fsdp=False), "finetuning") is None
    assert host_bytes(FOUND, there, "teacher-pass") is None
    # on a CPU the processes lie side by side, and the first one loads beside its slices
    here = replace(there, device=torch.device("cpu"))
    assert host_bytes(FOUND, here, "finetuning") == 4 * 184 + (180 + 120 - 184)
    assert host_bytes(FOUND, replace(here, fsdp=False), "finetuning") == 4 * 184


def test_a_student_that_is_sharded_takes_less_and_is_planned_over_more(small: Recipe) -> None:
    recipe = small.model_copy(update={"stages": ["finetuning"]})
    (one,) = plan_run(recipe, Machines(devices=2)).stages
    plan = plan_run(recipe, Machines(devices=2, fsdp=True))
    (shared,) = plan.stages
    assert plan.shards_student
    assert not plan_run(recipe, Machines(fsdp=True)).shards_student  # one alone shares with nobody
    assert shared.weights_bytes == pytest.approx(one.weights_bytes / 2, rel=0.02)
    assert shared.optimizer_bytes == pytest.approx(one.optimizer_bytes / 2, rel=0.02)
    assert shared.device_bytes < one.device_bytes
    assert shared.trained_parameters == one.trained_parameters
    assert shared.host_bytes is not None
    memory = round(0.9 * shared.device_bytes / USABLE)
    (mended,) = plan_run(recipe, Machines(devices=2, memory_bytes=memory, fsdp=True)).stages
    for mend in mended.mends:
        assert mend.setting.partition("over ")[2] not in ("1 devices", "2 devices")


def test_processes_on_a_cpu_divide_its_memory(small: Recipe) -> None:
    (one, two) = (plan_run(small, Machines(devices=count)) for count in (1, 2))
    assert one.memory_bytes is not None
    assert two.memory_bytes == one.memory_bytes // 2
    (stage,) = two.stages
    assert stage.host_bytes == 2 * stage.device_bytes


def test_taps_that_rest_take_no_more_time(tmp_path: Path) -> None:
    def operations(devices: int, **interaction: Any) -> float:
        recipe = with_section(made, "interaction", **interaction)
        machines = Machines(devices=devices, operations_per_second=1e9)
        (stage,) = plan_run(recipe, machines).stages
        return stage.operations / devices

    made = make_recipe(tmp_path).model_copy(update={"stages": ["interaction"]})
    made = made.model_copy(update={"teacher": Recipe().teacher})
    schedule = InteractionSection().inner_schedule
    stays, falls = operations(1, inner_schedule=None), operations(1, inner_schedule=schedule)
    assert falls == pytest.approx(0.3 * stays + 0.7 * operations(1, inner="none"))
    assert operations(2, inner_schedule=schedule) == pytest.approx(falls)


def test_devices_divide_the_time_and_add_buckets(small: Recipe) -> None:
    plan_run(small)  # the first rehearsal of a process makes tensors that libraries keep
    (one,) = plan_run(small, Machines(operations_per_second=1e9)).stages
    (two,) = plan_run(small, Machines(devices=2, operations_per_second=1e9)).stages
    # three steps are given, and each is of twice as many samples
    assert one.steps == two.steps == 3
    assert two.operations == pytest.approx(2 * one.operations)
    assert two.seconds == pytest.approx(one.seconds)
    buckets = two.device_bytes - one.device_bytes
    assert buckets == pytest.approx(4 * one.trained_parameters, rel=0.01)


def test_a_probe_measures_a_stage_and_leaves_random_numbers_alone(small: Recipe) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    (stage,) = plan_run(small, Machines(probe=True), most_rows=4).stages
    assert torch.equal(torch.rand(4), expected)
    assert stage.seconds is not None
    assert stage.seconds > 0


def test_an_accelerator_takes_the_recipes_precision(small: Recipe) -> None:
    elsewhere = small.model_copy(update={"device": "auto"})
    student = small.student.model_copy(update={"dtype": "bfloat16"})
    wide = plan_run(elsewhere, most_rows=4)
    narrow = plan_run(elsewhere.model_copy(update={"student": student}), most_rows=4)
    assert wide.device == narrow.device == "cuda"
    assert narrow.stages[0].weights_bytes < 0.6 * wide.stages[0].weights_bytes


def test_nothing_to_plan_is_said_in_one_line(small: Recipe) -> None:
    with pytest.raises(RecipeError, match="no model is named"):
        plan_run(Recipe(data=small.data))
    with pytest.raises(RecipeError, match="data"):
        plan_run(small.model_copy(update={"data": Recipe().data}))


def test_the_command_prints_a_plan_and_the_next_command(small: Recipe, tmp_path: Path) -> None:
    path = _written(small, tmp_path)
    result = _run(path, "--devices", 2, "--memory", "80GB", "--throughput", 100)
    assert result.exit_code == 0, result.output
    assert "2 × cpu, 80.0 GB" in result.stdout
    *lines, _, last = result.stdout.splitlines()
    launcher = "ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m vlsi_cache.cli"
    assert last == f"next: {launcher} train-student --recipe {path}"
    assert lines[-1].split()[0] == "interaction"
    assert lines[-1].split()[-1] == "fits"
    result = _run(path, "--taps", "1,2", "--max-length", 500)
    assert result.stdout.splitlines()[-1] == (
        f"next: vlsi-cache train-student --recipe {path} --taps 1,2 --set data.max_length=500"
    )


@pytest.mark.parametrize(
    ("flags", "launcher"),
    [
        ((), "vlsi-cache"),
        (("--devices", 2), "ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m vlsi_cache.cli"),
        (
            ("--devices", 2, "--fsdp"),
            "ACCELERATE_USE_CPU=true ACCELERATE_USE_FSDP=true FSDP_VERSION=2 "
            "torchrun --nproc-per-node 2 -m vlsi_cache.cli",
        ),
        (
            ("--device", "auto", "--devices", 4),
            "accelerate launch --num_processes 4 -m vlsi_cache.cli",
        ),
        (
            ("--device", "auto", "--devices", 4, "--fsdp"),
            "accelerate launch --use_fsdp --fsdp_version 2 --num_processes 4 -m vlsi_cache.cli",
        ),
    ],
)
def test_the_next_command_starts_the_planned_processes(
    flags: tuple[object, ...], launcher: str, small: Recipe, tmp_path: Path
) -> None:
    result = _run(_written(small, tmp_path), *flags, "--rows", 2, "--memory", "80GB")
    assert result.exit_code == 0, result.output
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"next: {launcher} train-student --recipe ")


def test_a_plan_that_fails_is_planned_again_with_what_was_asked(
    small: Recipe, tmp_path: Path
) -> None:
    path = _written(small, tmp_path)
    result = _run(path, "--devices", 2, "--fsdp", "--memory", "0.1MB", "--rows", 2)
    assert result.exit_code == 1
    again = f"next: vlsi-cache plan --recipe {path} --devices 2 --memory 0.1MB --fsdp"
    assert result.stdout.splitlines()[-1] == again
    assert "2 × cpu, 100 kB, which share the student's weights (FSDP)" in result.stdout
    assert " on the first process's machine" in result.stdout


def test_student_taps_that_cannot_be_matched_are_refused(tmp_path: Path) -> None:
    made = make_recipe(tmp_path, teacher={"taps": [1]}, student={"taps": [0, 1]})
    with pytest.raises(StageError, match=r"fewer teacher taps than student taps.*at least 2"):
        plan_run(made)
    assert plan_run(with_section(made, "interaction", inner="none"), most_rows=2).stages
    alone = made.model_copy(update={"teacher": Recipe().teacher})
    assert plan_run(alone, most_rows=2).stages, "the teacher's taps are not known"


def test_json_has_what_is_promised_and_the_exit_status_says_what_fits(
    small: Recipe, tmp_path: Path
) -> None:
    path = _written(small, tmp_path)
    result = _run("--recipe", path, "--memory", "100kB", "--rows", 3, "--json")
    assert result.exit_code == 1
    Plan.model_validate_json(result.stdout)
    plan: dict[str, Any] = json.loads(result.stdout)
    assert plan["fits"] is False
    assert plan["memory_bytes"] == 10**5
    assert {"samples", "response_tokens", "cache_bytes", "stages"} <= plan.keys()
    assert {"name", "device_bytes", "seconds"} <= plan["stages"][0].keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "much"), "expected a size such as 80GB"),
        (("--memory", "0GB"), "expected a size such as 80GB"),
        (("--devices", "0"), "--devices"),
        (("--fsdp",), "give --devices, at least 2"),
        (("--throughput", "0"), "--throughput"),
        (("--probe", "--throughput", "1"), "--probe contradicts --throughput"),
        (("--set", "teacher.model=/nowhere"), "no such model folder"),
        (("--set", "data.path=/nowhere.jsonl"), "/nowhere.jsonl"),
        (("--set", "cache.nonsense=1"), "cache.nonsense"),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: tuple[str, ...], said: str, small: Recipe, tmp_path: Path
) -> None:
    result = _run(_written(small, tmp_path), *arguments)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_recipe_that_is_given_twice_is_refused(small: Recipe, tmp_path: Path) -> None:
    path = _written(small, tmp_path)
    result = _run(path, "--recipe", path)
    assert result.exit_code == 2
    assert "given twice" in result.stderr


def test_rows_that_cannot_be_read_are_counted(small: Recipe, tmp_path: Path) -> None:
    source = Path(str(small.data.path))
    path = source.with_name("broken.jsonl")
    rows = source.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*rows[:3], '{"messages": []}']), encoding="utf-8")
    data = small.data.model_copy(update={"path": str(path)})
    plan = plan_run(small.model_copy(update={"data": data}))
    assert (plan.samples, plan.rows_read, plan.unreadable_rows) == (4, 4, 1)


def _of_teacher(recipe: Recipe) -> Recipe:
    """The recipe of the teacher's stages alone."""
    return recipe.model_copy(update={"student": Recipe().student})


def test_a_bound_on_tokens_leaves_passes_of_many_short_samples(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, interaction={"inner": "none"})
    rows = [{"prompt": "word " * 110, "completion": "Red."}]
    rows += [{"prompt": "A?", "completion": "blue " * 30}] * 40
    path = Path(str(recipe.data.path))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    bound = {"batch_size": 32, "batch_tokens": 500}
    recipe = _of_teacher(changed(recipe, cache=bound))
    plan = plan_run(recipe, Machines())
    bounded = next(stage for stage in plan.stages if stage.name == "teacher-pass")
    lengths = read_lengths(recipe, 100)
    number, length, responses = bounded.batch
    assert number * length <= 500
    assert number > 1
    assert responses == number * max(lengths.responses)

    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows[1:]), encoding="utf-8")
    alone = changed(recipe, cache={"batch_size": number, "batch_tokens": None})
    short = next(one for one in plan_run(alone).stages if one.name == "teacher-pass")
    assert short.batch == bounded.batch
    # a second plan in one process finds some small tables made
    assert bounded.working_bytes == pytest.approx(short.working_bytes, rel=0.05)


def test_a_teacher_that_processes_hold_together_has_as_many(tmp_path: Path) -> None:
    recipe = _of_teacher(changed(make_recipe(tmp_path), teacher={"tensor_parallel": 2}))
    one, two = (plan_run(recipe, Machines(count, operations_per_second=1e9)) for count in (1, 2))
    # the first plan of a process makes some small tables
    for first, second in zip(one.stages, two.stages, strict=True):
        assert first.device_bytes == pytest.approx(second.device_bytes, rel=0.05)
        assert (first.steps, first.seconds) == (second.steps, second.seconds)
        assert first.host_bytes is not None


def test_a_cache_of_more_samples_than_the_data_takes_no_time_back(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=12, cache={"samples_per_shard": 2})
    dump_teacher(recipe, partition=Partition(1, 2))
    fewer = _of_teacher(changed(recipe, data={"limit": 3}))
    plan = plan_run(fewer, Machines(operations_per_second=1e9))
    assert all(stage.seconds is not None and stage.seconds > 0 for stage in plan.stages)
