"""Every benchmark runs, and gives the figures that it promises: numbers, never judged by speed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from support.commands import run_job

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROOF = "experiments/first_proof/run"
PROMISED: dict[str, set[str]] = {
    "cache_size": set(),
    PROOF: set(),
    "stage_one": {"teacher_ridge_1_core_minutes", "teacher_ridge_1_mean_nats"},
    "dump_overhead": {"overhead_ratio", "decode_over_consumption"},
    "gpu": set(),
    "longer": set(),
    "loader": {"data_wait_fraction", "decode_over_consumption"},
    "cache_scale": {
        "open_seconds",
        "open_peak_bytes",
        "peak_over_index_bytes",
        "most_over_least_seconds_per_token",
    },
    "statistics_speed": {"plain_over_ours", "tokens_taps_per_cpu_second"},
    "worth": set(),
    "record_speed": {"together_over_draws_recording", "together_over_draws_reading"},
    "second_start": {"first_over_second", "first_over_rest", "seconds_per_million_rows"},
    "objective": {
        "time_over_autograd",
        "memory_over_autograd",
        "time_over_two_matmuls",
        "time_20_over_1_candidates",
    },
    "student_step": {
        "time_over_plain",
        "memory_over_plain",
        "output_time_over_plain",
        "online_time_over_ours",
        "online_memory_over_ours",
        "arithmetic_ratio",
    },
}


def _run(name: str) -> dict[str, Any]:
    command = [str(FOLDER / f"{name}.py"), "--quick", "--json", "--device", "cpu"]
    done = run_job(*command)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_quick_run_gives_every_figure(name: str) -> None:
    result = _run(name)
    for figure in PROMISED[name]:
        assert math.isfinite(result[figure]), figure
        assert result[figure] > 0, figure
    assert {"device", "threads", "torch", "rounds", "size"} <= result.keys()
    if name == "cache_size":
        _assert_sound_rows(result["rows"])
    if name == PROOF:
        _assert_every_arm(result["arms"])
    if name == "worth":
        _assert_every_experiment(result["experiments"])
    if name == "longer":
        _assert_both_lengths(result)
    if name == "gpu":
        _assert_every_part(result)
    if name == "objective":
        assert result["gradient_difference"] < 1e-4
        for rival in result["rivals"]:
            assert rival.keys() == {"name", "time_over_ours", "memory_over_ours"}
    if name == "cache_scale":
        counts = [row["num_tokens"] for row in result["rows"]]
        assert counts == sorted(set(counts))
        assert all(row["seconds_per_million_tokens"] > 0 for row in result["rows"])


def test_the_page_of_the_first_proof_has_what_the_runs_gave() -> None:
    command = [str(FOLDER / f"{PROOF}.py"), "--table", "--markdown"]
    done = run_job(*command, check=True)
    page = (FOLDER.parent / "docs" / "first-proof.md").read_text(encoding="utf-8")
    _, tables = page.split("run.py --table --markdown -->\n")
    printed = tables.split("<!-- end -->")[0]
    assert printed.strip() == done.stdout.strip(), "print them again, in between"


def test_the_page_of_results_has_what_the_experiments_gave() -> None:
    command = [str(FOLDER / "worth.py"), "--table", "--markdown"]
    done = run_job(*command, check=True)
    page = (FOLDER.parent / "docs" / "results.md").read_text(encoding="utf-8")
    printed = page.split("worth.py --table --markdown -->\n")[1].split("<!-- end of worth -->")[0]
    assert printed.strip() == done.stdout.strip(), "print them again, in between"


def _assert_every_part(result: dict[str, Any]) -> None:
    assert result["errors"] == {}
    assert [(row["vocab"], row["candidates"]) for row in result["objective"]] == [
        (512, 1),
        (512, 4),
        (640, 1),
        (640, 4),
    ]
    for row in result["objective"]:
        assert row["time_over_floor"] > 0
        assert row["peak_bytes"] is None  # a CPU offers none
        for error in ("error_of_values", "error_of_gradients", "error_of_cross_entropy"):
            assert row[error] < 1e-5, error
    assert result["dump"]["tokens"] == 4 * 25  # each answer, and the end of its turn
    dump, verbalization = result["dump"], result["verbalization"]
    loader, steps = result["loader"], result["student_step"]
    ratios = [dump["over_bare"], dump["over_verbalized"], verbalization["over_forward"]]
    ratios += [row["over_cross_entropy"] for row in steps]
    assert all(0 < ratio < math.inf for ratio in ratios)
    assert 0 <= loader["wait_fraction"] < 1
    assert [row["name"] for row in steps] == [
        "tiny, output only",
        "tiny, 2 taps",
        "tiny, fine-tuning",
    ]
    assert {"torch", "transformers", "liger-kernel"} <= result["versions"].keys()
    judged = {one["goal"]: one["met"] for one in result["goals"]}
    assert len(judged) == 10
    assert judged["objective, 512 tokens, 1 candidate: peak bytes"] is None


def test_parts_that_fail_leave_their_errors_and_the_result_is_written(tmp_path: Path) -> None:
    command = [str(FOLDER / "gpu.py"), "--json", "--device", "meta"]
    command += ["--parts", "objective,dump", "--out", str(tmp_path)]
    done = run_job(*command)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert result["errors"].keys() == {"objective", "dump"}
    assert result["goals"] == []
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text(encoding="utf-8")) == result


def _assert_every_experiment(experiments: list[dict[str, Any]]) -> None:
    names = ["E0", "E1", "E2a", "E2b", "E2c", "E3", "E4", "E5", "E6", "E7"]
    assert [found["name"] for found in experiments] == names
    arms = {arm["name"]: arm for found in experiments for arm in found["arms"]}
    for found in experiments:
        assert found["prediction"]
        assert found["verdict"].count(";") == len(found["differences"]) - 1
    for arm in arms.values():
        assert arm["seeds"] == [10]
        assert all(math.isfinite(figure["mean"]) for figure in arm["figures"].values())
    by_exits = arms["taps-to-output"]["figures"]
    assert {"exit-1.along.acceptance", "exit-1.after.acceptance"} <= by_exits.keys()
    assert arms["output"]["figures"].keys() >= {
        "tuned-labels.label_loss",
        "tuned-record.divergence_nats",
        "step-0.label_loss",
    }


def _assert_both_lengths(result: dict[str, Any]) -> None:
    named = {found["name"]: found for found in result["differences"]}
    assert named.keys() == {"short", "early", "long"}
    for found in named.values():
        assert found["seeds"] == [0]
        assert math.isfinite(found["mean"])
        assert {guess["by"] for guess in found["guesses"]} == {"first", "second"}
    assert 0 < named["short"]["tokens"] < named["long"]["tokens"]
    trained = {f"{kind}-{arm}-0" for kind in ("short", "long") for arm in ("output", "hidden")}
    assert result["scores"].keys() == {"untouched", *trained}
    assert all(found["divergence_nats"] > 0 for found in result["scores"].values())
    runs = {run["name"]: run for run in result["runs"]}
    assert runs.keys() == trained
    for kind in ("short", "long"):
        output, hidden = runs[f"{kind}-output-0"], runs[f"{kind}-hidden-0"]
        assert output["status"] == hidden["status"] == 0
        assert output["tokens"] == hidden["tokens"], "both arms see the same samples"
        assert output["curve"][0]["divergence_nats"] > 0


def _assert_every_arm(arms: list[dict[str, Any]]) -> None:
    assert [arm["name"] for arm in arms] == [
        "fine-tuning",
        "output-online",
        "output-cache",
        "output-renormalized",
        "output-bucket",
        "full-online",
        "full-cache",
        "full-uniform",
        "full-expected",
        "full-shortest",
        "full-quarter",
        "full-tenth",
        "output-blocks",
    ]
    for arm in arms:
        assert arm["seeds"] == [0]
        for figure in ("label_loss", "divergence_nats"):
            assert arm[figure]["mean"] > 0, arm["name"]
        assert arm["step_seconds"] > 0
        assert arm["peak_bytes"] > 0
        assert bool(arm["cache_bytes"]) == (arm["source"] in ("cache", "truncated"))


def _assert_sound_rows(rows: list[dict[str, Any]]) -> None:
    figures = {
        "bytes_per_token_tap",
        "angle_degrees",
        "norm_ratio",
        "kl_bias_nats",
        "kl_sd_nats",
    }
    named = {row["name"]: row for row in rows}
    assert {"dense-bf16", "vlsi-cache", "sparse-logit-sampling-12"} <= named.keys()
    for row in rows:
        assert figures <= row.keys()
        assert all(math.isfinite(row[figure]) for figure in figures), row
    several = [row for row in rows if "over_seeds" in row]
    assert {"vlsi-cache k=0 m=14", "vlsi-cache"} <= {row["name"] for row in several}
    for row in several:
        assert row["seeds"] == 2
        for figure in figures:
            lowest, highest = row["over_seeds"][figure]
            assert lowest <= row[figure] <= highest
    # few tokens: unbiased records differ from the truth by chance, scaled ones by construction
    assert abs(named["vlsi-cache"]["kl_bias_nats"]) < 0.2 < named["top-64"]["kl_bias_nats"]


def test_every_script_is_tested() -> None:
    paths = [*FOLDER.glob("*.py"), *FOLDER.glob("experiments/*/run.py")]
    scripts = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in paths}
    assert scripts == PROMISED.keys()


def test_a_script_prints_its_tables_without_json() -> None:
    command = [str(FOLDER / "cache_size.py"), "--quick"]
    shown = run_job(*command, check=True).stdout
    assert "vlsi-cache in order of ids" in shown
    assert "KL spread" in shown
