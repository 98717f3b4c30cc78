"""Held-out samples: never learned from, measured while a student trains, and what follows."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from support.ranks import RankServer, errors
from support.runs import make_recipe, poison
from vlsi_cache.data import IndexedConversations
from vlsi_cache.errors import CacheMismatchError, RecipeError, StageError
from vlsi_cache.evaluation import evaluate_model
from vlsi_cache.interruption import Interrupted, ask_to_stop
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.student import train_student
from vlsi_cache.student.choosing.held_out import held_out_of
from vlsi_cache.student.choosing.holding_out import find_held_out
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.training import begin_run
from vlsi_cache.training.folders.measurements import MeasurementJournal
from vlsi_cache.training.loop.tally import HeldOutTally, MeasuredSample

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
PART = 0.3
WEIGHTS = "student/model.safetensors"


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Twelve samples, of which some are held out by ``PART``, and their cache."""
    every_step = {"steps": 4, "save_every": 3}
    recipe = make_recipe(
        tmp_path_factory.mktemp("held-out"), interaction=every_step, finetuning=every_step
    )
    dump_teacher(recipe)
    return recipe


@pytest.fixture(scope="module")
def other(dumped: Recipe) -> Recipe:
    """Other data of five samples, and its cache."""
    recipe = make_recipe(
        dumped.output.parent / "other",
        num_samples=5,
        teacher=dumped.teacher.model_dump(mode="json"),
    )
    rows = Path(str(recipe.data.path)).read_text("utf-8").replace("What is", "Which one is")
    Path(str(recipe.data.path)).write_text(rows, "utf-8")
    dump_teacher(recipe)
    return recipe


def _changed(recipe: Recipe, output: Path, **changes: Any) -> Recipe:
    raw = json.loads(recipe.model_dump_json())
    raw["cache"]["path"] = str(recipe.cache_path)
    raw["output"] = str(output)
    for section, change in changes.items():
        raw[section] = {**raw[section], **change} if isinstance(change, dict) else change
    return recipe_from_mapping(raw, where="test")


def _measured(stage: Path) -> list[dict[str, Any]]:
    lines = (stage / "held-out.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _held_out(output: Path) -> list[int]:
    found: list[int] = json.loads((output / "held-out.json").read_bytes())["samples"]
    return found


def _rows(recipe: Recipe) -> list[str]:
    return Path(str(recipe.data.path)).read_text("utf-8").splitlines()


def _same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


class _Seen:
    """Notes which samples are read, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.indices: set[int] = set()
        read = IndexedConversations.__getitem__

        def noted(dataset: IndexedConversations, index: int) -> Any:
            self.indices.add(index)
            return read(dataset, index)

        monkeypatch.setattr(IndexedConversations, "__getitem__", noted)


class _Heard(TrainerCallback):
    """Notes what a caller's own callback gets of the Trainer."""

    def __init__(self) -> None:
        self.names: set[tuple[str, tuple[str, ...]]] = set()
        self.metrics: set[str] = set()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        self.names.add((args.run_name, tuple(args.report_to)))
        self.metrics |= set(metrics)


def test_no_stage_learns_from_held_out_samples_and_the_log_counts_them(
    dumped: Recipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epochs = {"steps": None, "epochs": 2, "workers": 0}
    schedule = {**dumped.student.verbalization.model_dump(mode="json"), **epochs}
    recipe = _changed(
        dumped,
        tmp_path,
        student={"verbalization": schedule},
        interaction=epochs,
        finetuning=epochs,
        held_out={"part": PART, "every": 1000, "limit": 1},
    )
    seen = _Seen(monkeypatch)
    with caplog.at_level(logging.INFO, "vlsi_cache"):
        train_student(recipe)
    held_out = _held_out(tmp_path)
    count = len(held_out)
    assert 1 < count < 8
    # the first four samples are compared with the cache before any stage, and one is measured
    learned = set(range(12)) - set(held_out)
    further = seen.indices - learned - set(range(4))
    assert learned <= seen.indices
    assert len(further) <= 1
    assert further <= set(held_out)
    assert f"held out: {count} of 12 samples" in caplog.text
    assert "1 of them are measured every 1000 steps, 1 with a record" in caplog.text
    for stage in ("verbalization", "interaction", "finetuning"):
        assert f"{stage} leaves out {count} of 12 samples, of which {count} are held out" in (
            caplog.text
        )
    steps = 2 * -(-(12 - count) // 4)
    last = f"finetuning  step {steps} of {steps}  held-out loss"
    assert last in caplog.text  # the last step is measured, whatever its number


def test_a_damaged_line_of_figures_costs_the_card_alone(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = _changed(dumped, tmp_path, held_out={"part": PART, "every": 1000})
    train_student(recipe)
    for name in ("finetuning", "student"):
        shutil.rmtree(recipe.output / name)
    (recipe.output / "interaction" / "held-out.jsonl").write_bytes(b"\0\0junk\n")
    with caplog.at_level(logging.WARNING, "vlsi_cache"):
        student = train_student(recipe)
    assert "interaction/held-out.jsonl cannot be read" in caplog.text
    assert (student / "README.md").is_file()


def test_content_alone_decides_so_that_further_rows_move_no_other(
    dumped: Recipe, tmp_path: Path
) -> None:
    held_out = {"part": PART}
    recipe = _changed(dumped, tmp_path / "one", stages=["finetuning"], held_out=held_out)
    train_student(recipe)
    rows = _rows(dumped)
    before = {rows[index] for index in _held_out(tmp_path / "one")}
    again = json.loads(rows[_held_out(tmp_path / "one")[0]])
    new = [rows[3].replace("What is", f"Which of {number} is") for number in range(6)]
    mixed = [*new[:3], *rows, *new[3:], json.dumps({**again, "id": "again"})]
    path = tmp_path / "more.jsonl"
    path.write_text("".join(f"{row}\n" for row in mixed), "utf-8")
    more = _changed(recipe, tmp_path / "two", data={"path": str(path)}, cache={"path": None})
    train_student(more)
    after = {mixed[index] for index in _held_out(tmp_path / "two")}
    assert after & {*rows} == before
    assert mixed[-1] in after  # a copy under another name is on the same side


def test_other_data_is_measured_as_by_evaluate_and_changes_nothing_of_the_student(
    dumped: Recipe, other: Recipe, tmp_path: Path
) -> None:
    dropout = {"lora": {"rank": 4, "alpha": 4, "dropout": 0.2}}  # draws at random in every step
    plain = _changed(dumped, tmp_path / "plain", interaction=dropout)
    train_student(plain)
    held_out = {"path": str(other.data.path), "cache": str(other.cache_path), "every": 3}
    output = tmp_path / "measured"
    student = train_student(_changed(plain, output, held_out=held_out))
    _same_weights(tmp_path / "plain", output)
    evaluated = _changed(other, tmp_path, student={"model": str(student)})
    found = evaluate_model(evaluated, with_cache=True)
    lines = _measured(output / "finetuning")
    assert [line["step"] for line in lines] == [3, 4]
    assert lines[-1]["held_out_samples"] == lines[-1]["held_out_compared"] == 5
    assert lines[-1]["held_out_loss_nats"] == pytest.approx(found.loss_nats, rel=1e-5)
    assert lines[-1]["held_out_divergence_nats"] == pytest.approx(found.divergence_nats, rel=1e-4)
    events = EventAccumulator(str(output / "finetuning" / "tensorboard")).Reload()
    shown = [event.value for event in events.Scalars("train/held_out_loss_nats")]
    assert shown == pytest.approx([line["held_out_loss_nats"] for line in lines])


def test_the_best_weights_are_kept_and_a_stage_that_gets_worse_stops(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worse = {"learning_rate": 3.0, "steps": 20, "save_every": 1}  # far too fast
    recipe = _changed(
        dumped,
        tmp_path,
        stages=["finetuning"],
        finetuning=worse,
        held_out={"part": PART, "every": 1, "keep": "best", "patience": 3},
        report_to=["tensorboard"],
        run_name="first",
    )
    heard = _Heard()
    with caplog.at_level(logging.INFO, "vlsi_cache"):
        student = train_student(recipe, [heard])
    assert heard.names == {("first-finetuning", ())}  # whose events are written by the stage
    assert heard.metrics == {"eval_held_out_loss_nats", "eval_held_out_samples"} | {
        f"eval_held_out_{name}" for name in ("divergence_nats", "compared")
    }
    lines = _measured(tmp_path / "finetuning")
    losses = [line["held_out_loss_nats"] for line in lines]
    best = losses.index(min(losses))
    assert best + 4 == len(lines) < 20
    assert f"step {len(lines)} is the last: held_out.patience has run out" in caplog.text
    path = tmp_path / "held-out-rows.jsonl"
    rows = _rows(dumped)
    path.write_text("".join(f"{rows[index]}\n" for index in _held_out(tmp_path)), "utf-8")
    evaluated = _changed(
        recipe, tmp_path, student={"model": str(student)}, data={"path": str(path)}
    )
    assert evaluate_model(evaluated).loss_nats == pytest.approx(losses[best], rel=1e-5)
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_the_best_and_the_patience_survive_kills_and_other_numbers_of_processes(
    server: RankServer, dumped: Recipe, tmp_path: Path
) -> None:
    held_out = {"part": PART, "every": 1, "keep": "best", "patience": 4}
    fast = {"steps": 20, "learning_rate": 3.0, "save_every": 2, "workers": 0}
    recipe = _changed(
        dumped, tmp_path / "whole", stages=["finetuning"], finetuning=fast, held_out=held_out
    )
    raw = json.loads(recipe.model_dump_json())
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole, killed = ({**raw, "output": str(folder)} for folder in folders)
    assert server.run(folders[0], 1, recipe=whole) == [0]
    lines = _measured(folders[0] / "finetuning")
    losses = [line["held_out_loss_nats"] for line in lines]
    last, best = len(losses), losses.index(min(losses)) + 1
    assert last == best + 4 < 20
    for step in (best + 1, best + 3, last - 1):  # checkpoints are two steps apart
        codes = server.run(folders[1], 1, recipe=killed, kill=["finetuning", step])
        assert codes == [-signal.SIGKILL]
    assert (folders[1] / "finetuning" / f"checkpoint-{best}").is_dir()  # though others are later
    assert server.run(folders[1], 1, recipe=killed) == [0]
    assert _measured(folders[1] / "finetuning") == lines
    _same_weights(*folders)


def test_several_processes_measure_what_one_measures(
    server: RankServer, dumped: Recipe, tmp_path: Path
) -> None:
    matching = {"strategy": "expected", "granularity": "sample"}
    all_at_once = {"batch_size": 12, "workers": 0, "steps": 2, "learning_rate": 1e-3}
    recipe = _changed(
        dumped,
        tmp_path,
        interaction={**all_at_once, "matching": matching, "batch_tokens": 100},
        finetuning=all_at_once,
        held_out={"part": PART, "every": 1, "keep": "best", "batch_size": 1},
    )
    raw = json.loads(recipe.model_dump_json())
    raw["student"]["verbalization"] |= {"workers": 0, "batch_size": 12}
    for name, count, env in (("one", 1, {}), ("many", 2, {}), ("sharded", 2, FSDP)):
        folder = tmp_path / name
        folder.mkdir()
        task = {**raw, "output": str(folder)}
        assert server.run(folder, count, recipe=task, env=env) == [0] * count
        for stage in ("interaction", "finetuning"):
            expected, found = (_measured(tmp_path / run / stage) for run in ("one", name))
            assert len(expected) == len(found) == 2
            for line, same in zip(expected, found, strict=True):
                assert same == pytest.approx(line, rel=2e-3)


def test_a_held_out_sample_that_cannot_be_read_stops_all_processes(
    server: RankServer, dumped: Recipe, other: Recipe, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    long = _rows(other)[3].replace("Which", "Which " * 600)
    path.write_text("".join(f"{row}\n" for row in [*_rows(other)[:3], long]), "utf-8")
    held_out = {"path": str(path), "every": 1, "batch_size": 1}
    recipe = _changed(dumped, tmp_path, stages=["finetuning"], held_out=held_out)
    assert server.run(tmp_path, 2, recipe=json.loads(recipe.model_dump_json())) == [1, 1]
    assert all("longer than the model's context" in error for error in errors(tmp_path, 2))
    skipping = _changed(recipe, tmp_path / "skip", data={"on_error": "skip"})
    train_student(skipping)
    assert _measured(tmp_path / "skip" / "finetuning")[0]["held_out_samples"] == 3


def test_samples_to_learn_from_that_are_held_out_too_are_left_out(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("".join(f"{row}\n" for row in _rows(dumped)[2:5]), "utf-8")
    held_out = {"path": str(path)}
    recipe = _changed(dumped, tmp_path, stages=["finetuning"], held_out=held_out)
    train_student(recipe)
    assert "3 of the 12 samples to learn from are held out too, and are left out" in caplog.text
    assert _held_out(tmp_path) == [2, 3, 4]
    with pytest.raises(StageError, match=r"other settings:\n  held_out"):
        train_student(_changed(dumped, tmp_path, stages=["finetuning"]))
    everything = _changed(recipe, tmp_path / "all", held_out={"path": str(dumped.data.path)})
    with pytest.raises(RecipeError, match="none remains to learn from"):
        train_student(everything)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({"part": 0.2, "path": "x.jsonl"}, "held_out.part: is given beside path or split"),
        ({"keep": "best"}, "held_out.keep: has no effect"),
        ({"part": 0.2, "patience": 3}, "held_out.patience: needs keep: best"),
        ({"part": 0.2, "metric": "divergence"}, "held_out.metric: needs keep: best"),
        ({"part": 0.2, "cache": "c"}, "held_out.cache: has no effect"),
        ({"path": "x.jsonl", "keep": "best", "metric": "divergence"}, "needs held_out.cache"),
        ({"part": 1.5}, "held_out.part"),
        ({"part": 0.2, "revision": "v1"}, "held_out.revision: has no effect"),
    ],
)
def test_held_out_settings_that_contradict_one_another_are_refused(
    held_out: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_from_mapping({"held_out": held_out}, where="test")


def test_what_cannot_be_held_out_is_refused_before_anything_is_loaded(
    dumped: Recipe, other: Recipe, tmp_path: Path
) -> None:
    nothing = _changed(dumped, tmp_path, held_out={"part": 1e-9})
    with pytest.raises(RecipeError, match="none of the 12 samples is in this part"):
        train_student(nothing)
    wrong = {"path": str(other.data.path), "cache": str(dumped.cache_path)}
    with pytest.raises(CacheMismatchError, match="cache was made for other data"):
        train_student(_changed(dumped, tmp_path, held_out=wrong))
    unrecorded = {"part": PART, "keep": "best", "metric": "divergence"}
    alone = _changed(dumped, tmp_path, stages=["finetuning"], held_out=unrecorded)
    with pytest.raises(RecipeError, match="there is no record of the held-out samples"):
        train_student(_changed(alone, tmp_path, cache={"path": str(tmp_path / "none")}))
    with pytest.raises(
        RecipeError, match=r"report_to: this tracker is not installed; found trackio"
    ):
        train_student(_changed(dumped, tmp_path, report_to=["trackio"]))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_signal_at_a_measured_step_is_not_taken_for_the_end_of_patience(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            ask_to_stop(signal.SIGTERM, "here")

    held_out = {"part": PART, "every": 1}
    recipe = _changed(dumped, tmp_path, stages=["finetuning"], held_out=held_out)
    with caplog.at_level(logging.INFO, "vlsi_cache"), pytest.raises(Interrupted):
        train_student(recipe, [Stop()])
    assert [line["step"] for line in _measured(tmp_path / "finetuning")] == [1]
    assert "patience" not in caplog.text


def test_a_divergence_that_cannot_be_compared_is_refused_before_a_stage_begins(
    dumped: Recipe, other: Recipe, tmp_path: Path
) -> None:
    half = _unfinished(other, tmp_path / "half")
    held_out = {"path": str(other.data.path), "keep": "best", "metric": "divergence"}
    recipe = _changed(dumped, tmp_path / "run", stages=["finetuning"])
    recipe = _changed(recipe, tmp_path / "run", held_out={**held_out, "cache": str(half)})
    with pytest.raises(RecipeError, match="record is incomplete and may still grow"):
        train_student(recipe)
    own = {"part": PART, "keep": "best", "metric": "divergence"}
    alone = _changed(dumped, tmp_path / "own", stages=["finetuning"], held_out=own)
    unfinished = _unfinished(dumped, tmp_path / "unfinished")
    with pytest.raises(RecipeError, match="record is incomplete and may still grow"):
        train_student(_changed(alone, tmp_path / "own", cache={"path": str(unfinished)}))
    assert not list(tmp_path.rglob("checkpoint-*"))


def _unfinished(recipe: Recipe, copy: Path) -> Path:
    """Return a copy of a recipe's cache without its last shard, as before a dump's end."""
    shutil.copytree(recipe.cache_path, copy)
    last = max(path.name for path in (copy / "shards").glob("*.zarr.zip"))
    for path in (copy / "index.json", *(copy / "shards").glob(f"{last.split('.')[0]}.*")):
        path.unlink()
    return copy


def test_a_student_chosen_by_another_teachers_record_is_another_student(
    dumped: Recipe, other: Recipe, tmp_path: Path
) -> None:
    second = _changed(other, tmp_path / "second", seed=1, cache={"path": str(tmp_path / "b")})
    dump_teacher(second)
    held_out = {"path": str(other.data.path), "keep": "best", "metric": "divergence"}
    first = _changed(
        dumped,
        tmp_path / "run",
        stages=["finetuning"],
        held_out={**held_out, "cache": str(other.cache_path)},
    )
    train_student(first)
    with pytest.raises(StageError, match=r"other settings:\n  best"):
        train_student(_changed(first, tmp_path / "run", held_out={"cache": str(tmp_path / "b")}))


def test_a_limit_takes_samples_of_every_source_by_their_contents(
    dumped: Recipe, other: Recipe, tmp_path: Path
) -> None:
    rows = [*_rows(other), *(row.replace("Which", "Whose") for row in _rows(other))]
    found = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{row}\n" for row in order), "utf-8")
        recipe = _changed(
            dumped, tmp_path / name, held_out={"path": str(path), "limit": 4}, stages=["finetuning"]
        )
        samples = find_held_out(begin_run(recipe, "student", []), None)
        assert samples is not None
        assert [*samples.measured] == sorted(samples.measured)
        found.append({order[index] for index in samples.measured})
    assert found[0] == found[1] != set(rows[:4])


def test_the_revision_of_the_data_is_not_that_of_other_held_out_data() -> None:
    data = {"path": "some/data", "revision": "abc"}
    for held_out, revision in (
        ({"path": "other/data"}, None),
        ({"path": "other/data", "revision": "v1"}, "v1"),
        ({"split": "test"}, "abc"),
        ({"split": "test", "revision": "v1"}, "v1"),
    ):
        recipe = recipe_from_mapping({"data": data, "held_out": held_out}, where="test")
        assert recipe.held_out.section_of(recipe.data).revision == revision


def test_a_held_out_sample_without_a_finite_loss_is_named_or_left_out_everywhere(
    dumped: Recipe, other: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = tmp_path / "model", tmp_path / "spoilt.jsonl"
    shutil.copytree(str(dumped.student.model), model)
    poison(model)
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "The red one"}]
    rows = [json.dumps({"id": "spoilt", "messages": said}), *_rows(other)]
    path.write_text("".join(f"{row}\n" for row in rows), "utf-8")
    held_out = {"path": str(path), "every": 2, "keep": "best", "batch_size": 3}
    recipe = _changed(
        dumped,
        tmp_path / "stop",
        stages=["finetuning"],
        held_out=held_out,
        student={"model": str(model)},
    )
    with pytest.raises(StageError, match=r"not finite at step 2, in 'spoilt'.*--on-error skip"):
        train_student(recipe)
    train_student(_changed(recipe, tmp_path / "skip", data={"on_error": "skip"}))
    assert "no measurement has 1 held-out sample whose loss is not finite: 'spoilt'" in caplog.text
    lines = _measured(tmp_path / "skip" / "finetuning")
    assert [line["held_out_samples"] for line in lines] == [5, 5]
    assert [line["held_out_left_out"] for line in lines] == [[0], [0]]
    assert MeasurementJournal(tmp_path / "skip" / "finetuning").left_out() == {0}


def test_a_sample_that_turns_bad_after_the_first_measurement_stops_the_stage(
    dumped: Recipe, other: Recipe, tmp_path: Path
) -> None:
    held_out = {"path": str(other.data.path), "limit": 3}
    skipping = {"held_out": held_out, "data": {"on_error": "skip"}, "stages": ["finetuning"]}
    recipe = _changed(dumped, tmp_path, **skipping)
    run = begin_run(recipe, "student", [])
    student = load_backbone(recipe.student, "student", run.device, trains=True, place=run.place)
    samples = held_out_of(find_held_out(run, None), student, recipe)
    assert samples is not None
    tally = HeldOutTally(samples, tmp_path)
    bad = MeasuredSample(0, 4, math.nan, None)
    good = [MeasuredSample(index, 2, 3.0 * index, None) for index in (1, 2)]
    figures = {"held_out_loss_nats": 9 / 4, "held_out_samples": 2}
    assert tally.figures([bad, *good], 1) == figures
    assert tally.figures([bad._replace(loss=1.0), *good], 2) == figures  # one set of samples
    with pytest.raises(StageError, match=r"not finite at step 3.*1 of 2 held-out samples.*Delete"):
        tally.figures([bad, good[0], good[1]._replace(loss=math.inf)], 3)
    with pytest.raises(StageError, match="3 of 3 held-out samples"):  # it is the run's problem
        HeldOutTally(samples, tmp_path).figures(
            [one._replace(loss=math.nan) for one in (bad, *good)], 1
        )
