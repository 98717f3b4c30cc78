"""What a check says is what happens: it foretells what a command refuses, and passes what runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from support.runs import make_recipe
from vlsi_cache.cli.main import cli
from vlsi_cache.teacher import dump_teacher

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """One run's recipe and files, which a case changes."""

    folder: Path
    raw: Raw

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def student(self) -> Path:
        return self.folder / "student-base"

    @property
    def data(self) -> Path:
        return self.folder / "data.jsonl"

    @property
    def output(self) -> Path:
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        return self.output / "cache"

    def set(self, path: str, value: object) -> None:
        """Set a key of the recipe by its dotted path."""
        node = self.raw
        *parents, last = path.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value

    def rows(self) -> list[Raw]:
        return [json.loads(line) for line in self.data.read_text().splitlines()]

    def write(self, rows: list[Any]) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.data.write_text("\n".join(lines) + "\n")


Case = Callable[[Place], object]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, data and a whole cache."""
    folder = tmp_path_factory.mktemp("begun") / "here"
    recipe = make_recipe(folder, num_samples=8)
    dump_teacher(recipe)
    raw = recipe.model_dump(mode="json")
    (folder / "recipe.json").write_text(json.dumps(raw).replace(str(folder), "HERE"))
    return folder


def _place(begun: Path, target: Path, *, dumped: bool) -> Place:
    shutil.copytree(begun, target)
    if not dumped:
        shutil.rmtree(target / "run")
    text = (target / "recipe.json").read_text().replace("HERE", str(target))
    raw = json.loads(text)
    return Place(target, raw)


def _run(command: str, place: Place, *more: str) -> Result:
    file = place.folder / "recipe.yaml"
    file.write_text(json.dumps(place.raw))  # JSON is YAML
    return CliRunner(env={"COLUMNS": "300"}).invoke(cli, [command, str(file), *more])


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _quantised(**fields: object) -> Case:
    return lambda place: _config(place.teacher, quantization_config=fields)


def _teacher(**fields: object) -> Case:
    return lambda place: _config(place.teacher, **fields)


def _fresh(case: Case) -> Case:
    """A case whose run begins with its dump."""

    def changed(place: Place) -> None:
        shutil.rmtree(place.output)
        case(place)

    return changed


def _set(path: str, value: object) -> Case:
    return lambda place: place.set(path, value)


def _student_quantised(place: Place) -> None:
    _config(place.student, quantization_config={"quant_method": "awq", "bits": 4})


def _student_of_torchao(place: Place) -> None:
    kind = {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}
    fields = {"quant_method": "torchao", "quant_type": kind}
    _config(place.student, quantization_config=fields)


def _own_code(place: Place) -> None:
    _config(place.teacher, model_type="own", auto_map={"AutoConfig": "code.OwnConfig"})
    (place.teacher / "code.py").write_text("class OwnConfig: pass\n")


def _in_shards(folder: Path, *, missing: bool) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for shard, own in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: weights[name] for name in own}, folder / shard, {"format": "pt"})
        index |= dict.fromkeys(own, shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    if missing:
        (folder / "b.safetensors").unlink()


def _without_metadata(place: Place) -> None:
    _in_shards(place.teacher, missing=False)
    index = place.teacher / "model.safetensors.index.json"
    _json(index, lambda found: found.pop("metadata"))


def _without_weights(place: Place) -> None:
    (place.teacher / "model.safetensors").unlink()


def _without_template(place: Place) -> None:
    (place.teacher / "chat_template.jinja").unlink()


def _broken_template(place: Place) -> None:
    (place.teacher / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}")


def _other_words(place: Place) -> None:
    path = place.student / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["one-more"])
    tokenizer.save(str(path))


def _student_template(place: Place) -> None:
    path = place.student / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>", "!<|im_end|>"))


def _few_taps(place: Place) -> None:
    place.set("teacher.taps", [1])
    place.set("student.taps", [0, 2])


def _other_data(place: Place) -> None:
    rows = place.rows()
    rows[2]["messages"][0]["content"] = "Something else?"
    place.write(rows)


def _bad_row(place: Place) -> None:
    place.write([*place.rows(), "{not json"])


def _empty_answer(place: Place) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    place.write([*place.rows(), {"messages": turns}])


def _image_for_text(place: Place) -> None:
    Image.new("RGB", (8, 8)).save(place.folder / "a.png")
    rows = place.rows()
    rows[1] |= {"image": "a.png"}
    place.write(rows)


def _all_too_long(place: Place) -> None:
    place.set("data.max_length", 5)
    place.set("data.on_error", "skip")


def _foreign_cache(place: Place) -> None:
    place.cache.mkdir(parents=True)
    (place.cache / "thesis.txt").write_text("mine")


def _lost_shard(place: Place) -> None:
    next(iter(sorted((place.cache / "shards").iterdir()))).unlink()


def _cut_shard(place: Place) -> None:
    path = sorted((place.cache / "shards").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-9])


def _no_manifest(place: Place) -> None:
    (place.cache / "manifest.json").write_text("{")


def _file_as_output(place: Place) -> None:
    place.output.write_text("a file")


def _verbalizers_of_nobody(place: Place) -> None:
    place.set("teacher.taps", None)
    place.set("teacher.verbalizers", str(place.folder / "nowhere"))


def _verbalizers_damaged(place: Place) -> None:
    folder = place.folder / "verbalizers"
    folder.mkdir()
    (folder / "verbalizers.json").write_text("{}")
    place.set("teacher.taps", None)
    place.set("teacher.verbalizers", str(folder))


def _verbalizers_beyond(place: Place) -> None:
    folder = place.folder / "verbalizers"
    shutil.copytree(place.output / "teacher-verbalizers", folder)
    _json(folder / "verbalizers.json", lambda found: found.update(taps=[1, 3, 50]))
    place.set("teacher.taps", None)
    place.set("teacher.verbalizers", str(folder))
    place.set("output", str(place.folder / "fresh"))


def _verbalizers_without_weights(place: Place) -> None:
    folder = place.folder / "verbalizers"
    shutil.copytree(place.output / "teacher-verbalizers", folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    place.set("teacher.taps", None)
    place.set("teacher.verbalizers", str(folder))
    place.set("output", str(place.folder / "fresh"))


def _verbalizers_of_the_student(place: Place) -> None:
    place.set("student.taps", None)
    place.set("student.verbalizers", str(place.output / "teacher-verbalizers"))


def _alone(case: Case) -> Case:
    """A case whose recipe names the student alone."""

    def changed(place: Place) -> None:
        case(place)
        place.set("teacher.model", None)
        place.set("cache.path", str(place.cache))

    return changed


def _other_template(place: Place) -> None:
    path = place.teacher / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "assistant "))


def _no_draws_or_tops(place: Place) -> None:
    place.set("cache", {**place.raw["cache"], "k": 0, "m": 8, "drawn_from": "rest"})
    place.set("interaction.tail", "renormalize")


BEFORE: dict[str, Case] = {
    "bitsandbytes": _quantised(quant_method="bitsandbytes", load_in_4bit=True),
    "awq": _quantised(quant_method="awq", bits=4, group_size=128),
    "gptq": _quantised(quant_method="gptq", bits=4, group_size=128),
    "compressed tensors": _quantised(quant_method="compressed-tensors", config_groups={}),
    "torchao of another version": _quantised(quant_method="torchao", quant_type="int4_weight_only"),
    "a quantisation of nobody": _quantised(quant_method="nobodys"),
    "a quantisation in the recipe": _set("teacher.quantization", {"load_in_4bit": True}),
    "flash attention in the recipe": _set("teacher.attn_implementation", "flash_attention_2"),
    "flash attention in the config": _teacher(_attn_implementation="flash_attention_2"),
    "kernels": _set("teacher.use_kernels", True),
    "code of its own": _own_code,
    "an unknown family": _teacher(model_type="gpt-17"),
    "an unknown activation": _teacher(hidden_act="wish"),
    "no weights": _without_weights,
    "an index without metadata": _without_metadata,
    "an absent shard": lambda place: _in_shards(place.teacher, missing=True),
    "a tied head of its own": _teacher(tie_word_embeddings=True),
    "other shapes": _teacher(hidden_size=48),
    "no tokenizer": lambda place: (place.teacher / "tokenizer.json").unlink(),
    "no template": _without_template,
    "a broken template": _broken_template,
    "an option of no processor": _set("teacher.processor", {"max_pixel": 3}),
    "taps that are no blocks": _set("teacher.taps", [1, 99]),
    "a device of another machine": _set("teacher.device_map", "cuda:3"),
    "an absent accelerator": _set("device", "cuda"),
    "heads that cannot be divided": _set("teacher.tensor_parallel", 3),
    "a file as output": _file_as_output,
    "a folder of other things": _foreign_cache,
    "more entries than words": _set("cache.k", 4000),
    "a hidden state that is not recorded": _set("interaction.hidden", {}),
    "a row that is not JSON": _bad_row,
    "an empty answer": _empty_answer,
    "an image for a text model": _image_for_text,
    "all rows too long": _all_too_long,
    "no data": lambda place: place.data.unlink(),
    "verbalizers that are not there": _verbalizers_of_nobody,
    "damaged verbalizers": _verbalizers_damaged,
}
"""What ``dump-teacher`` refuses."""
AFTER: dict[str, Case] = {
    "verbalizers beyond the blocks": _verbalizers_beyond,
    "verbalizers without weights": _verbalizers_without_weights,
    "other entries": _set("cache.m", 7),
    "other draws": _set("seed", 9),
    "other data": _other_data,
    "another template": _other_template,
    "another attention": _set("teacher.attn_implementation", "eager"),
    "another precision": _set("teacher.dtype", "bfloat16"),
    "a damaged manifest": _no_manifest,
}
"""What ``dump-teacher`` refuses where there is a cache."""
TRAININGS: dict[str, Case] = {
    "a quantised student": _student_quantised,
    "a student of torchao": _student_of_torchao,
    "no weights of the student": lambda place: (place.student / "model.safetensors").unlink(),
    "other shapes of the student": lambda place: _config(place.student, intermediate_size=99),
    "a student that cannot be saved": lambda place: _config(place.student, output_attentions=True),
    "taps of the student": _set("student.taps", [0, 9]),
    "more taps than the teacher's": _set("student.taps", [0, 1, 2, 3]),
    "one more word": _other_words,
    "another template of the student": _student_template,
    "data of another cache": _other_data,
    "a tracker": _set("report_to", ["mlflow"]),
    "a lost shard": _alone(_lost_shard),
    "a cut shard": _alone(_cut_shard),
    "no cache": _alone(lambda place: shutil.rmtree(place.cache)),
    "a hidden state": _alone(_set("interaction.hidden", {})),
    "a target that is no tap": _set("interaction.output_target", {"tap": 4}),
    "held-out data": _set("held_out.path", "nowhere.jsonl"),
    "nothing held out": _set("held_out.part", 0.0001),
    "nothing chosen": _set("data.select", {"by": "entropy", "between": [100.0, 200.0]}),
    "verbalizers of the teacher": _verbalizers_of_the_student,
}
"""What ``train-student`` refuses."""


def _bad_row_skipped(place: Place) -> None:
    _bad_row(place)
    place.set("data.on_error", "skip")


def _other_words_for_labels(place: Place) -> None:
    _other_words(place)
    place.set("stages", ["finetuning"])


def _output_alone(place: Place) -> None:
    place.set("student.taps", [0, 1, 2, 3])
    place.set("interaction.inner", "none")


def _named_verbalizers(place: Place) -> None:
    place.set("teacher.taps", None)
    place.set("teacher.verbalizers", str(place.output / "teacher-verbalizers"))


SOUND: dict[str, tuple[str, Case]] = {
    "the first dump": ("dump-teacher", _set("output", "fresh")),
    "a dump that is done": ("dump-teacher", lambda _: None),
    "shards of weights": (
        "dump-teacher",
        lambda place: _in_shards(place.teacher, missing=False),
    ),
    "a row that is skipped": ("dump-teacher", _fresh(_bad_row_skipped)),
    "plain attention": (
        "dump-teacher",
        _fresh(_set("teacher.attn_implementation", "eager")),
    ),
    "verbalizers of the teacher's own": ("dump-teacher", _named_verbalizers),
    "a training": ("train-student", lambda _: None),
    "a training alone": ("train-student", _alone(lambda _: None)),
    "labels of other words": ("train-student", _other_words_for_labels),
    "a part held out": ("train-student", _set("held_out.part", 0.6)),
    "half of the samples": (
        "train-student",
        _set("data.select", {"by": "entropy", "keep": 0.5, "order": "lowest"}),
    ),
    "the output alone": ("train-student", _output_alone),
}
"""What runs well, where there is a cache."""


def _words(result: Result) -> str:
    """The error of a command."""
    assert result.exit_code > 0, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    _, error, words = f"\n{result.stderr}".partition("\nerror: ")
    assert error, result.stderr
    return " ".join(words.split())


def _validate_foretold(command: str, place: Place) -> None:
    """Compare what a check says with what the command then does."""
    checked = _run("check", place, "--json")
    assert checked.exit_code > 0, checked.output
    ran = _words(_run(command, place))
    if not checked.stdout:  # neither can open the data
        assert _words(checked) == ran
        return
    failures = json.loads(checked.stdout)["failures"]
    said = [" ".join(one["why"].split()).partition(". ")[0] for one in failures]
    kinds = [one["kind"] for one in failures]
    assert any(words in ran for words in said + kinds), (ran, said)


@pytest.mark.parametrize("case", BEFORE)
def test_what_a_dump_refuses_is_foretold(case: str, begun: Path, tmp_path: Path) -> None:
    place = _place(begun, tmp_path / "here", dumped=False)
    BEFORE[case](place)
    _validate_foretold("dump-teacher", place)


@pytest.mark.parametrize("case", AFTER)
def test_what_a_dump_refuses_beside_a_cache_is_foretold(
    case: str, begun: Path, tmp_path: Path
) -> None:
    place = _place(begun, tmp_path / "here", dumped=True)
    AFTER[case](place)
    _validate_foretold("dump-teacher", place)


@pytest.mark.parametrize("case", TRAININGS)
def test_what_a_training_refuses_is_foretold(case: str, begun: Path, tmp_path: Path) -> None:
    place = _place(begun, tmp_path / "here", dumped=True)
    TRAININGS[case](place)
    _validate_foretold("train-student", place)


@pytest.mark.parametrize("case", [_few_taps, _no_draws_or_tops])
def test_what_a_dump_to_come_cannot_teach_is_foretold(
    case: Case, begun: Path, tmp_path: Path
) -> None:
    place = _place(begun, tmp_path / "here", dumped=False)
    case(place)
    checked = _run("check", place, "--json")
    assert checked.exit_code == 1
    (failure,) = json.loads(checked.stdout)["failures"]
    assert _run("dump-teacher", place).exit_code == 0
    assert failure["why"].partition(". ")[0] in _words(_run("train-student", place))


@pytest.mark.parametrize("case", SOUND)
def test_what_runs_well_passes(
    case: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, change = SOUND[case]
    place = _place(begun, tmp_path / "here", dumped=True)
    change(place)
    checked = _run("check", place)
    assert checked.exit_code == 0, checked.output
    ran = _run(command, place)
    assert ran.exit_code == 0, ran.output


def test_what_this_machine_lacks_is_said_to_be_its_own(begun: Path, tmp_path: Path) -> None:
    place = _place(begun, tmp_path / "here", dumped=False)
    for name in ("awq", "a device of another machine", "an absent accelerator", "kernels"):
        BEFORE[name](place)
    BEFORE["flash attention in the recipe"](place)
    failures = json.loads(_run("check", place, "--json").stdout)["failures"]
    assert len(failures) > 1
    assert all("on this machine" in failure["kind"] for failure in failures)
