"""``vlsi-cache check``: it reads everything, goes on past failures, and lists all of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, T5Config

from support.commands import run_job
from support.familytokenizers import family_tokenizer
from support.runs import save_image_model, save_text_model, write_conversations
from vlsi_cache.check import CheckReport
from vlsi_cache.cli.main import cli

Row = dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "images": save_image_model(folder / "images", num_layers=4),
        "text": save_text_model(folder / "text", num_layers=4),
        "other": _with_tokenizer(save_text_model(folder / "other", num_layers=2), "qwen3"),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def made(*rows: object) -> Path:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return made


def _with_tokenizer(folder: Path, kind: str) -> Path:
    family_tokenizer(kind).save_pretrained(folder)
    return folder


def _row(question: str, answer: str, **more: Any) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli, ["check", *map(str, arguments)])


def _json(*arguments: object, code: int) -> Any:
    result = _run(*arguments, "--json")
    assert result.exit_code == code, result.output
    CheckReport.model_validate_json(result.stdout)
    return json.loads(result.stdout)


def test_sound_data_passes_with_its_counts(models: dict[str, Path], tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data.jsonl", 5, images=True)
    report = _json("--teacher", models["images"], "--data", data, "--images", code=0)
    assert report["rows"] == report["sound_rows"] == 5
    assert report["failures"] == report["columns_not_read"] == []
    assert report["images_decoded"] is True
    assert report["models"][0]["max_length"] == 512
    assert len(report["samples"]) == 3
    learned = [run["text"] for run in report["samples"][1]["runs"] if run["learned"]]
    assert learned == ["The green one<|im_end|>", "The blue one<|im_end|>"]
    assert 0 < report["response_tokens"] < report["tokens"]
    assert report["longest"] <= 512


def test_counts_by_size_alone_are_those_of_decoded_pictures(
    models: dict[str, Path], tmp_path: Path, write: Callable[..., Path]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 16), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (16, 48)).save(tmp_path / "grey.png")
    data = write(
        _row("<image>What?", "red", image="turned.jpg"), _row("<image>?", "grey", image="grey.png")
    )
    arguments = ("--teacher", models["images"], "--data", data)
    by_size = _json(*arguments, code=0)
    decoded = _json(*arguments, "--images", code=0)
    for name in ("tokens", "response_tokens", "longest"):
        assert by_size[name] == decoded[name]


def test_every_failure_is_listed_and_the_rest_is_read(
    models: dict[str, Path], tmp_path: Path, write: Callable[..., Path]
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    (tmp_path / "junk.png").write_bytes(b"no picture")
    data = write(
        _row("What?", "red", id="good", mood="fine"),
        "{not json",
        {"id": "shapeless", "text": 3},
        _row("<image>?", "red", image="absent.png", id="absent"),
        _row("<image>?", "red", image="junk.png", id="junk"),
        _row("<image>?", "red", image="cut.png", id="cut"),
        _row("word " * 700, "red", id="long"),
        _row("Which?", "blue", id="last"),
    )
    report = _json("--teacher", models["images"], "--data", data, "--images", code=1)
    assert report["rows"] == 8
    assert report["sound_rows"] == 2
    by_sample = {failure["sample"]: failure["why"] for failure in report["failures"]}
    assert list(by_sample) == [
        "rows.jsonl:2",
        "rows.jsonl:3",
        "absent",
        "junk",
        "cut",
        "long",
    ]
    assert "not JSON" in by_sample["rows.jsonl:2"]
    assert "missing" in by_sample["absent"]
    assert "cannot be decoded" in by_sample["junk"]
    assert "cannot be decoded" in by_sample["cut"]
    assert "at most 512 tokens" in by_sample["long"]
    undecoded = _json("--teacher", models["images"], "--data", data, code=1)
    assert "cut" not in {failure["sample"] for failure in undecoded["failures"]}
    assert "mood" in report["columns_not_read"]


def test_the_terminal_marks_what_is_learned_and_ends_with_what_would_fail(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    rows = [_row("What?", "It is red.", id="good")]
    rows += [_row("word " * 40, "red", id=f"long-{number}") for number in range(9)]
    data = write(*rows)
    result = _run("--teacher", models["text"], "--data", data, "--max-length", 40)
    assert result.exit_code == 1
    assert "⟦It is red.<|im_end|>⟧" in result.stdout
    tail = result.stdout.partition("9 failures:")[2]
    assert "9 × conversation is longer than" in tail
    assert "(sample 'long-0')" in tail
    assert "and 6 more; --json lists all" in tail
    assert "checked 10 of 10 rows" in result.stderr
    assert "\x1b[" not in result.stdout


def test_rows_that_a_run_would_skip_are_no_reason_to_fail(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(_row("What?", "red", id="good", sytem="x"), "{not json")
    result = _run("--teacher", models["text"], "--data", data, "--on-error", "skip")
    assert result.exit_code == 0
    assert "1 failure, which data.on_error: skip leaves out:" in result.stdout
    assert "sytem (perhaps system)" in result.stdout
    assert _run("--teacher", models["text"], "--data", data).exit_code == 1


def test_a_column_that_no_row_has_is_a_setting_without_effect(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(_row("What?", "red"), _row("Which?", "blue", pic="red.png"))
    columns = ("--set", "data.columns={pics: image, pic: null}")
    report = _json("--teacher", models["text"], "--data", data, *columns, code=0)
    assert report["idle_settings"] == ["data.columns: no row has pics"]


def test_a_path_beside_other_files_is_not_sought_on_the_hub(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    result = _run("--teacher", models["text"], "--data", "data/trian")
    assert result.exit_code == 1
    assert "data/trian: there is no such data file or folder" in result.output


def test_a_templates_refusals_are_found(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(
        _row("What?", "red", id="good"),
        _row("a <|im_end|> b", "red", id="spelt"),
    )
    report = _json("--teacher", models["other"], "--data", data, code=0)
    assert report["changed_samples"] == 1


def test_taps_that_are_not_blocks_are_found_without_weights(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(_row("What?", "red"))
    named = ("--teacher", models["text"], "--data", data)
    report = _json(*named, "--set", "teacher.taps=[1,9]", code=1)
    (failure,) = report["failures"]
    assert failure["sample"] is None
    assert failure["where"] == "teacher.taps"
    assert "from 0 to 3; found 9" in failure["why"]


def test_taps_of_a_flag_are_the_teachers_or_else_the_students(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(_row("What?", "red"))
    for role in ("teacher", "student"):
        report = _json(f"--{role}", models["text"], "--data", data, "--taps", "1,9", code=1)
        assert [failure["where"] for failure in report["failures"]] == [f"{role}.taps"]
        assert _run(f"--{role}", models["text"], "--data", data, "--taps", "1,3").exit_code == 0
    twice = _run("--teacher", models["text"], "--data", data, "--taps", "1,1")
    assert twice.exit_code == 2
    assert "error: --taps: names a block twice" in twice.stderr


def test_samples_are_shown_from_all_parts_and_the_rest_of_the_rows_is_counted(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    rows = [_row("What?", "red", id=f"row-{number}") for number in range(12)]
    rows[4] = _row("What?", "", id="row-4")
    data = write(*rows)
    arguments = ("--teacher", models["text"], "--data", data, "--on-error", "skip")
    report = _json(*arguments, "--limit", 9, code=0)
    assert [sample["sample"] for sample in report["samples"]] == ["row-0", "row-3", "row-6"]
    assert report["rows_not_read"] == 3
    shown = _run(*arguments, "--limit", 11)
    assert "11, 10 of them sound; 1 more row not read (data.limit)" in shown.stdout
    assert "checked 11 of 11 rows" in shown.stderr
    assert shown.stderr.count("checked ") == 1
    # The parts of 12 rows begin at 0, 4 and 8, and row 4 is not sound.
    whole = _json(*arguments, code=0)
    assert [sample["sample"] for sample in whole["samples"]] == ["row-0", "row-5", "row-8"]
    few = _json("--teacher", models["text"], "--data", write(*rows[3:5], rows[0]), code=1)
    assert [sample["sample"] for sample in few["samples"]] == ["row-3", "row-0"]


def test_a_text_model_says_first_that_it_sees_no_images(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(_row("<image>What?", "red", image="absent.png"))
    report = _json("--teacher", models["text"], "--data", data, code=1)
    (failure,) = report["failures"]
    assert "the model reads text only" in failure["why"]


def test_teacher_and_student_must_learn_the_same_tokens(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    # The other one's template writes an empty thought into its answers.
    data = write(_row("What?", "red", id="a"), _row("Which?", "blue", id="b"))
    same = _json("--teacher", models["text"], "--student", models["text"], "--data", data, code=0)
    assert [model["role"] for model in same["models"]] == ["teacher", "student"]
    report = _json(
        "--teacher", models["text"], "--student", models["other"], "--data", data, code=1
    )
    assert [failure["sample"] for failure in report["failures"]] == ["a", "b"]
    words = "sample 'a' other response tokens than the teacher's; expected 3 tokens, 262 ('re') at"
    assert words in report["failures"][0]["why"]


def test_tokenizers_that_differ_are_one_failure(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(_row("What?", "red"), _row("Which?", "blue"))
    report = _json(
        "--teacher", models["text"], "--student", models["images"], "--data", data, code=1
    )
    (failure,) = report["failures"]
    assert failure["kind"] == "tokenizers of teacher and student differ"
    words = (
        r"expected the teacher's \d+ tokens; found \d+, of which the teacher lacks '<.*with other"
    )
    assert re.search(words, failure["why"])
    assert (report["sound_rows"], report["failed_rows"]) == (0, 2)
    # labels alone are learned by each model's own tokens
    alone = ("--set", "stages=[finetuning]")
    named = ("--teacher", models["text"], "--student", models["images"], "--data", data)
    assert _json(*named, *alone, code=0)["sound_rows"] == 2


def _without_template(model: Path, folder: Path) -> Path:
    """A copy of a model that has no chat template."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*template*"))
    return folder


def _as_another_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    other = T5Config(vocab_size=config["vocab_size"]).to_dict()
    (folder / "config.json").write_text(json.dumps(other))


def _as_masked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    other = BertConfig(vocab_size=config["vocab_size"], architectures=["BertForMaskedLM"]).to_dict()
    (folder / "config.json").write_text(json.dumps(other))


def _as_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _in_shards(folder: Path) -> list[Path]:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = [folder / f"model-{number}-of-2.safetensors" for number in (1, 2)]
    names = sorted(weights)
    index = {}
    for shard, own in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({name: weights[name] for name in own}, shard)
        index |= dict.fromkeys(own, shard.name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return shards


def _without_a_shard(folder: Path) -> None:
    _in_shards(folder)[1].unlink()


def _with_half_a_shard(folder: Path) -> None:
    shard = _in_shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def _with_a_link_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "absent.safetensors")


def _with_half_an_index(folder: Path) -> None:
    _in_shards(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-20])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_as_another_kind, "the model is an encoder-decoder.*; found model_type t5"),
        (_as_masked, "a masked language model.*found BertForMaskedLM"),
        (_as_pickled, "no safetensors weights.*found pytorch_model.bin"),
        (_without_a_shard, "1 shard of the weights is missing.*2 files.*no model-2-of-2.safeten"),
        (_with_half_a_shard, "the file is cut off; expected 129,416 bytes; found 129,316"),
        (
            _with_a_link_to_nothing,
            "the file cannot be read; found a link to .*, which is not there",
        ),
        (_with_half_an_index, "the file is not JSON .*it ends before its JSON does"),
        (_in_shards, None),
    ],
)
def test_models_that_cannot_be_loaded_are_found_without_weights(
    damage: Callable[[Path], object],
    why: str | None,
    models: dict[str, Path],
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(models["text"], folder)
    damage(folder)
    data = write(_row("What?", "red"))
    report = _json("--teacher", folder, "--data", data, code=0 if why is None else 1)
    assert report["sound_rows"] == 1
    if why is None:
        assert report["failures"] == []
    else:
        (failure,) = report["failures"]
        assert re.search(why, failure["why"])
        assert failure["models"] == ["teacher"]


def test_a_folder_without_weights_fails_and_its_rows_are_checked(
    models: dict[str, Path], write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(models["text"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    report = _json("--teacher", folder, "--data", write(_row("What?", "red")), code=1)
    (failure,) = report["failures"]
    assert "the folder holds no safetensors weights" in failure["why"]
    assert report["sound_rows"] == 1


def test_a_model_without_a_template_is_one_failure(
    models: dict[str, Path], write: Callable[..., Path], tmp_path: Path
) -> None:
    bare = _without_template(models["text"], tmp_path / "base")
    data = write(_row("What?", "red"), _row("Which?", "blue"))
    report = _json("--teacher", bare, "--data", data, code=1)
    (failure,) = report["failures"]
    assert "no chat template" in failure["why"]


def test_a_row_that_one_of_two_models_cannot_read_is_not_sound(
    models: dict[str, Path], write: Callable[..., Path], tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    data = write(
        _row("What?", "red", id="both"),
        _row("<image>?", "red", image="red.png", id="seen"),
        _row("word " * 700, "red", id="long"),
    )
    for roles in (("teacher", "student"), ("student", "teacher")):
        blind, seeing = roles
        named = (f"--{blind}", models["text"], f"--{seeing}", models["images"], "--data", data)
        report = _json(*named, code=1)
        assert (report["rows"], report["sound_rows"], report["failed_rows"]) == (3, 0, 3)
        assert [(failure["sample"], failure["models"]) for failure in report["failures"]] == [
            (None, ["teacher", "student"]),
            ("seen", [blind]),
            ("long", ["teacher"]),
            ("long", ["student"]),
        ]
        shown = _run(*named).stdout
        assert "3, 0 of them sound" in shown
        assert "4 failures, and 3 rows that are not sound:" in shown
        assert f"(sample 'seen'), {blind}: sample has images, but the model reads" in shown


def test_a_model_that_reads_no_row_leaves_none_sound(
    models: dict[str, Path], write: Callable[..., Path], tmp_path: Path
) -> None:
    bare = _without_template(models["text"], tmp_path / "base")
    data = write(_row("What?", "red"), _row("Which?", "blue"))
    for role, other in (("teacher", "student"), ("student", "teacher")):
        named = (f"--{role}", bare, f"--{other}", models["text"], "--data", data)
        report = _json(*named, "--on-error", "skip", code=1)
        assert (report["sound_rows"], report["failed_rows"], report["tokens"]) == (0, 2, 0)
        (failure,) = report["failures"]
        assert (failure["sample"], failure["models"]) == (None, [role])
        assert f", {role}: " in _run(*named).stdout


def test_repeated_ids_are_counted_and_named_as_a_run_names_them(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(
        _row("What?", "red", id="a"),
        _row("word " * 700, "blue", id="a"),
        _row("Which?", "blue", id="b"),
        "{not json",
        _row("Who?", "Ann", id="a"),
    )
    arguments = ("--teacher", models["text"], "--data", data, "--on-error", "skip")
    report = _json(*arguments, code=0)
    assert report["repeated_ids"] == 2
    assert [sample["sample"] for sample in report["samples"]] == ["a", "b", "a#3"]
    assert [failure["sample"] for failure in report["failures"]] == ["a#2", "rows.jsonl:4"]
    shown = _run(*arguments).stdout
    assert "2 samples have the id of another; a run numbers them, such as ID#2" in shown
    assert "repeated ids" not in _run("--teacher", models["text"], "--data", write("{}")).stdout


def test_texts_that_no_terminal_should_obey_are_shown_as_escapes(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(_row("What?", "red \x1b[31m", id="good"), _row("a\ud800b", "red", id="\x1b[2J"))
    arguments = ("--teacher", models["text"], "--data", data)
    report = _json(*arguments, code=1)
    assert len(report["failures"]) == 1
    result = _run(*arguments)
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert "red \\x1b[31m" in result.stdout


def test_without_a_model_or_data_there_is_nothing_to_check(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    result = _run("--data", write(_row("What?", "red")))
    assert result.exit_code == 2
    assert "no model is named" in result.stderr
    result = _run("--teacher", models["text"])
    assert result.exit_code == 2
    assert "no data is named" in result.stderr


def test_a_processor_of_the_command_line_is_used(
    models: dict[str, Path], write: Callable[..., Path], tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    data = write(_row("<image>What?", "red", image="red.png"))
    arguments = ("--teacher", models["images"], "--data", data)
    least = _json(*arguments, "--set", "teacher.processor={max_pixels: 256}", code=0)
    assert least["tokens"] < _json(*arguments, code=0)["tokens"]
    result = _run(*arguments, "--set", "teacher.processor={max_pixel: 256}")
    assert result.exit_code == 1
    assert "does not know these options" in result.stdout
    assert "found max_pixel" in result.stdout


def test_the_installed_command_writes_its_way_to_a_log(
    models: dict[str, Path], write: Callable[..., Path]
) -> None:
    data = write(*[_row("What?", "red") for _ in range(30)])
    command = ["-m", "vlsi_cache.cli", "check", "--teacher", models["text"], "--data", data]
    found = run_job(*command, check=True)
    assert f"checking {data}: 30 rows for teacher" in found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("checked")]
    assert lines[-1] == "checked 30 of 30 rows"
    assert len(lines) == 10
    said, _, following = found.stdout.strip().partition("\n\nnext: ")
    assert said.endswith("Nothing would fail.")
    assert shlex.split(following)[:2] == ["vlsi-cache", "plan"]
    assert shlex.split(following)[2:] == ["--teacher", str(models["text"]), "--data", str(data)]


def test_pads_of_pictures_are_written_once_and_what_repeats_in_a_text_is_not(
    models: dict[str, Path], tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    turns = [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "}}}}}}}} 0000000000"},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": "a.png", "messages": turns}) + "\n", encoding="utf-8")
    large = ("--set", "teacher.processor={max_pixels: 4096}")
    (sample,) = _json("--teacher", models["images"], "--data", data, *large, code=0)["samples"]
    shown = "".join(run["text"] for run in sample["runs"])
    assert "}}}}}}}} 0000000000" in shown
    assert "<|image_pad|>×" in shown
