"""A run's folder as text, as JSON and as a page; two runs and two caches side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from support.browser import CHROMIUM, open_page
from support.caches import make_cache, make_manifest
from support.runs import make_recipe
from vlsi_cache import dump_teacher, train_student
from vlsi_cache.cli.main import cli
from vlsi_cache.recipe import Recipe
from vlsi_cache.report.comparison import compare_runs
from vlsi_cache.report.page import MAX_PAGE_BYTES
from vlsi_cache.report.page.runs import render_run, render_runs
from vlsi_cache.report.run.summarizing import summarize_run
from vlsi_cache.report.run.words import metric_text, tick_text
from vlsi_cache.stagefiles import MetricLine

STAGES = ["teacher-verbalizers", "student-verbalizers", "interaction", "finetuning"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("run"))
    dump_teacher(recipe)
    train_student(recipe)
    return recipe


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def write_stage(
    folder: Path, lines: Sequence[dict[str, Any]], journal: Sequence[dict[str, Any]] = ()
) -> Path:
    """A stage's folder with so many lines, inside a run."""
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text('{"finished": false, "settings": {"seed": 1}}')
    for name, rows in (("metrics.jsonl", lines), ("matching.jsonl", journal)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def logged(step: int, loss: float, **changes: Any) -> dict[str, Any]:
    pace = {"num_steps": 1, "seconds": 2.0, "waiting_seconds": 0.5, "num_tokens": 30}
    return {"step": step, "metrics": {"loss": loss}, **pace, **changes}


def test_every_stage_says_what_it_logged(run: Recipe) -> None:
    summary = json.loads(inspect(run.output, "--json").stdout)
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    assert summary["cache"]["num_shards"] == summary["cache"]["num_shards_present"] == 3
    for stage in summary["stages"]:
        lines = (run.output / stage["name"] / "metrics.jsonl").read_text().splitlines()
        logs = [MetricLine.model_validate_json(line) for line in lines]
        assert [log.step for log in logs] == [1, 2, 3]
        loss = next(metric for metric in stage["metrics"] if metric["name"] == "loss")
        assert [point["mean"] for point in loss["points"]] == [log.metrics["loss"] for log in logs]
        assert stage["finished"]
        assert stage["last_step"] == stage["pace"]["num_steps"] == 3
        assert stage["pace"]["seconds"] == pytest.approx(sum(log.seconds for log in logs))
        assert 0 < stage["pace"]["waiting_share"] < 1
        assert stage["pace"]["host_bytes"] > 10**7
        assert stage["held_out"] == []
        rests = stage["name"] == "interaction"  # by its default schedule
        assert ["taps rest since step 1" in note for note in stage["notes"]] == [True] * rests


def test_the_matchings_are_those_of_the_journal(run: Recipe) -> None:
    text = (run.output / "interaction" / "matching.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    stage = next(one for one in summarize_run(run.output).stages if one.name == "interaction")
    assert stage.matching is not None
    assert stage.matching.student_taps == (0, 2)
    for line, period in zip(lines, stage.matching.periods, strict=True):
        assert period.last_step == line["step"]
        assert period.share == tuple(
            tuple(pytest.approx(share, abs=1e-4) for share in row) for row in line["share"]
        )
        pairs = zip(line["share"], line["divergence"], strict=True)
        wanted = [sum(a * b for a, b in zip(*rows, strict=True)) for rows in pairs]
        assert period.matched_divergence == pytest.approx(wanted, rel=1e-5)


def test_the_text_names_stages_losses_and_matchings(run: Recipe) -> None:
    text = inspect(run.output).stdout
    for name in STAGES:
        assert f"{name}: finished, step 3" in text
    assert "kl_tap_2" in text
    assert "matched at step 1" in text
    assert "The taps rest since step 1, as their weight has fallen to 0" in " ".join(text.split())
    assert "response tokens/s" in text


def test_a_page_of_a_run_has_its_plots_and_is_complete(run: Recipe, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    assert inspect(run.output, "--html", page).output == f"page: {page}\n"
    text = page.read_text(encoding="utf-8")
    assert text.count("<table") >= text.count("<svg")  # a table behind every plot
    for heading in ("Who was matched with whom", "Pace and memory", "Losses", "Settings"):
        assert heading in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', text)) <= set(ids)
    assert not re.search(r"(?:src|href)=\"(?!#)", text)


def test_two_runs_stand_side_by_side_with_what_differs(run: Recipe, tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "other" / "interaction", [logged(1, 2.0), logged(2, 1.5)])
    compared = json.loads(inspect(run.output, "--compare", folder, "--json").stdout)
    differences = {item["path"]: item for item in compared["differences"]}
    assert differences["interaction.seed"]["first"] == 0
    assert differences["interaction.seed"]["second"] == 1
    assert differences["finetuning"]["absent"] == "second"
    assert differences["interaction.interaction.steps"]["absent"] == "second"
    text = inspect(run.output, "--compare", folder).stdout
    assert "interaction.dtype: float32 | –" in text
    assert "more, which --json lists" in text
    page = tmp_path / "two.html"
    assert inspect(run.output, "--compare", folder, "--html", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "What differs in the settings" in text
    assert 'class="line dashed"' in text


def test_a_run_beside_itself_has_no_differences(run: Recipe) -> None:
    assert "The settings are the same." in inspect(run.output, "--compare", run.output).stdout


def test_two_caches_stand_side_by_side(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 7)):
        sampling = {"k": 0, "m": 12, "seed": seed}
        make_cache(tmp_path / name, make_manifest(sampling=sampling))
    first, second = tmp_path / "a", tmp_path / "b"
    compared = json.loads(inspect(first, "--compare", second, "--json").stdout)
    assert [item["path"] for item in compared["differences"]] == ["sampling.seed"]
    assert compared["first"] == json.loads(inspect(first, "--json").stdout)
    assert "sampling.seed" in inspect(first, "--compare", second).stdout
    page = tmp_path / "two.html"
    assert inspect(first, "--compare", second, "--html", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "Entropy, in nats, first" in text
    assert "Distance of the taps from one another, second" in text


def test_two_caches_of_which_some_samples_are_read_have_standard_errors(tmp_path: Path) -> None:
    for name, count in (("a", 30), ("b", 5)):
        make_cache(tmp_path / name, make_manifest(num_samples=count, samples_per_shard=5))
    first, second = tmp_path / "a", tmp_path / "b"
    arguments = (first, "--compare", second, "--max-samples", 5)
    text = inspect(*arguments).stdout
    compared = json.loads(inspect(*arguments, "--json").stdout)
    tap = compared["first"]["taps"][0]
    errors = tap["standard_errors"]
    assert f"± {errors['entropy_nats']:.3f} | –" in text
    assert f"± {errors['agreement_with_final']:.1%} | –" in text
    assert compared["second"]["taps"][0]["standard_errors"] is None
    assert "A cache read whole has none." in text
    assert "±" not in inspect(first, "--compare", second).stdout


def test_long_settings_are_shown_where_they_differ(tmp_path: Path) -> None:
    taps = tuple(range(120))
    for name, last in (("a", 120), ("b", 121)):
        make_cache(tmp_path / name, make_manifest(taps=(*taps, last, -1)), shards=())
    text = inspect(tmp_path / "a", "--compare", tmp_path / "b").stdout
    shown = " ".join(text.split())
    assert "117, 118, 119, 120, -1] | … " in shown
    assert "117, 118, 119, 121, -1]" in shown


def test_a_run_is_not_compared_with_a_cache(run: Recipe) -> None:
    for pair in ((run.output, run.cache_path), (run.cache_path, run.output)):
        result = inspect(pair[0], "--compare", pair[1])
        assert result.exit_code == 1
        assert "cannot be compared" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_is_neither_is_one_error_that_says_what_was_found(
    run: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    found = {
        tmp_path: "found empty/, notes.txt",
        tmp_path / "empty": "an empty folder",
        tmp_path / "notes.txt": "a file",
        tmp_path / "missing": f"found no missing in {tmp_path}",
        run.output / "student": f"{run.output} is one: give that path",
    }
    for path, words in found.items():
        result = inspect(path)
        assert result.exit_code == 1
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "flags", [("--sample", "s1"), ("--max-samples", "5"), ("--data", "x", "--html", "y")]
)
def test_a_run_refuses_flags_that_would_do_nothing(run: Recipe, flags: tuple[str, ...]) -> None:
    result = inspect(run.output, *flags)
    assert result.exit_code == 2
    assert "a run has no samples" in result.stderr


def test_held_out_figures_are_found_by_any_name(tmp_path: Path) -> None:
    lines = [
        logged(1, 3.0),
        {"step": 1, "metrics": {"eval_loss": 4.0, "eval_runtime": 9.0, "epoch": 0.5}},
        logged(2, 2.5, metrics={"loss": 2.5, "held_out_loss": 3.5}),
        {"step": 2, "metrics": {"divergence_nats": 0.5}},
    ]
    (stage,) = summarize_run(write_stage(tmp_path / "run" / "finetuning", lines)).stages
    held_out = {metric.name: metric.last for metric in stage.held_out}
    assert held_out == {"eval_loss": 4.0, "held_out_loss": 3.5, "divergence_nats": 0.5}
    assert [metric.name for metric in stage.metrics] == ["loss"]
    assert stage.pace is not None
    assert (stage.pace.seconds_per_step, stage.pace.waiting_share) == (2.0, 0.25)
    assert stage.pace.tokens_per_second == 15


def test_a_long_run_is_thinned_and_keeps_its_peak(tmp_path: Path) -> None:
    lines = [logged(step, 1.0 if step != 4321 else 99.0) for step in range(1, 10_001)]
    folder = write_stage(tmp_path / "run" / "finetuning", lines)
    (stage,) = summarize_run(folder).stages
    (loss,) = stage.metrics
    assert (loss.num_lines, len(loss.points), loss.greatest) == (10_000, 120, 99.0)
    assert max(point.high for point in loss.points) == 99.0
    assert loss.points[-1].step == 10_000
    assert summarize_run(folder) == summarize_run(folder)


def test_a_page_of_many_taps_stays_small(tmp_path: Path) -> None:
    students, teachers = list(range(60)), list(range(100))
    share, divergence = [[0.01] * 100] * 60, [[1.0] * 100] * 60
    taps = {"student_taps": students, "teacher_taps": teachers}
    journal = [
        {"step": step, **taps, "share": share, "divergence": divergence} for step in range(1, 31)
    ]
    metrics = {"loss": 1.0, **{f"kl_tap_{tap}": 0.123456 * tap for tap in students}}
    lines = [logged(step, 1.0, metrics=metrics) for step in range(1, 301)]
    summary = summarize_run(write_stage(tmp_path / "run" / "interaction", lines, journal))
    two = render_runs(compare_runs(summary, summary))
    assert len(render_run(summary).encode()) < len(two.encode()) < MAX_PAGE_BYTES
    assert "One student tap in 3 is drawn" in two


def test_lines_that_cannot_be_read_are_noted(tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "run" / "finetuning", [logged(1, 2.0), logged(3, 1.0)])
    path = folder / "finetuning" / "metrics.jsonl"
    path.write_text(path.read_text().replace("\n", "\nbroken\n", 1))
    assert "1 line of metrics.jsonl cannot be read, the first at 2" in inspect(folder).stdout
    path.write_text(json.dumps(logged(1, 2.0)) + '\n{"step": 2, "met')
    assert "The last line of metrics.jsonl is not whole" in inspect(folder).stdout
    path.unlink()
    (folder / "finetuning" / "tensorboard").mkdir()
    assert "as in runs of earlier versions" in inspect(folder).stdout
    (folder / "finetuning" / "stage.json").write_text("{")
    result = inspect(folder)
    assert result.exit_code == 1
    assert "stage.json cannot be read" in result.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_browser_shows_a_run_without_a_request_or_a_word(run: Recipe, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    page.write_text(render_run(summarize_run(run.output)), encoding="utf-8")
    with open_page(page) as opened:
        for width, dark in ((390, True), (1180, False)):
            opened.appear(width=width, dark=dark)
            opened.load(page)
            assert opened.messages == []
            assert opened.requests == [page.as_uri()]
            assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
            drawn = "document.querySelector('.cells rect').getBoundingClientRect().width"
            assert opened.evaluate(drawn) > 1


@pytest.mark.parametrize(
    ("name", "value", "text", "tick"),
    [
        ("tokens_per_second", 12_345.6, "12,346", "12,346"),
        ("tokens_per_second", 1000.0, "1,000", "1,000"),
        ("loss", 0.12345, "0.1235", "0.123"),
        ("loss", 3e7, "3e+07", "3e+07"),
        ("waiting_share", 0.5, "50.0%", "50%"),
        ("host_bytes", 5e8, "500.0 MB", "500 MB"),
    ],
)
def test_thousands_are_written_out(name: str, value: float, text: str, tick: str) -> None:
    assert (metric_text(name, value), tick_text(name, value)) == (text, tick)
