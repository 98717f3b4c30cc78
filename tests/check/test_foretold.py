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

from support.runs import make_recipe, save_text_model
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


def _set(path: str, value: object) -> Case:
    return lambda place: place.set(path, value)


def _student_quantised(place: Place) -> None:
    _config(place.student, quantization_config={"quant_method": "awq", "bits": 4})


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
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    if missing:
        (folder / "b.safetensors").unlink()


def _without_weights(place: Place) -> None:
    (place.teacher / "model.safetensors").unlink()


def _untied(place: Place) -> None:
    _config(place.teacher, tie_word_embeddings=True)


def _without_template(place: Place) -> None:
    (place.teacher / "chat_template.jinja").unlink()


def _broken_template(place: Place) -> None:
    (place.teacher / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}")


def _raising_template(place: Place) -> None:
    text = "{{ raise_exception('no roles here') }}"
    (place.teacher / "chat_template.jinja").write_text(text)


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


def _absent_image(place: Place) -> None:
    rows = place.rows()
    rows[1] |= {"image": "absent.png"}
    place.write(rows)


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


def _nothing(place: Place) -> None:
    pass


def _uneven_heads(place: Place) -> None:
    _config(place.teacher, num_attention_heads=5, head_dim=None)


DUMPS: dict[str, Case] = {
    "bitsandbytes": _quantised(quant_method="bitsandbytes", load_in_4bit=True),
    "awq": _quantised(quant_method="awq", bits=4, group_size=128),
    "gptq": _quantised(quant_method="gptq", bits=4, group_size=128),
    "compressed": _quantised(quant_method="compressed-tensors", config_groups={}),
    "hqq": _quantised(quant_method="hqq"),
    "quanto": _quantised(quant_method="quanto", weights="int8"),
    "unknown quantisation": _quantised(quant_method="nobodys"),
    "no quant_method": _quantised(bits=4),
    "recipe's quantisation": _set("teacher.quantization", {"load_in_4bit": True}),
    "recipe's unknown": _set("teacher.quantization", {"quant_method": "nobodys"}),
    "flash attention": _set("teacher.attn_implementation", "flash_attention_2"),
    "flash in config": lambda place: _config(
        place.teacher, attn_implementation="flash_attention_2"
    ),
    "flash in config 2": lambda place: _config(
        place.teacher, _attn_implementation="flash_attention_2"
    ),
    "hub kernel": _set("teacher.attn_implementation", "kernels-community/flash-attn"),
    "use kernels": _set("teacher.use_kernels", True),
    "own code": _own_code,
    "unknown family": lambda place: _config(place.teacher, model_type="gpt-17"),
    "no family": lambda place: _config(place.teacher, model_type=None),
    "no weights": _without_weights,
    "absent shard": lambda place: _in_shards(place.teacher, missing=True),
    "head": _untied,
    "uneven heads": _uneven_heads,
    "wrong hidden size": lambda place: _config(place.teacher, hidden_size=48),
    "bad dtype": lambda place: _config(place.teacher, dtype="float99"),
    "bad act": lambda place: _config(place.teacher, hidden_act="wish"),
    "bad rope": lambda place: _config(place.teacher, rope_parameters={"rope_type": "wish"}),
    "no tokenizer": lambda place: (place.teacher / "tokenizer.json").unlink(),
    "no template": _without_template,
    "broken template": _broken_template,
    "raising template": _raising_template,
    "processor option": _set("teacher.processor", {"max_pixel": 3}),
    "taps": _set("teacher.taps", [1, 99]),
    "device map": _set("teacher.device_map", "cuda:3"),
    "device": _set("device", "cuda"),
    "output": _file_as_output,
    "foreign cache": _foreign_cache,
    "k": _set("cache.k", 4000),
    "hidden": _set("interaction.hidden", {}),
    "tracker": _set("report_to", ["mlflow"]),
    "bad row": _bad_row,
    "empty answer": _empty_answer,
    "image for text": _image_for_text,
    "too long": _set("data.max_length", 5),
    "all too long": _all_too_long,
    "no data": lambda place: place.data.unlink(),
    "verbalizers of nobody": _verbalizers_of_nobody,
    "verbalizers damaged": _verbalizers_damaged,
    "torchao": _quantised(quant_method="torchao", quant_type="int4_weight_only"),
    "gguf": lambda place: place.set("teacher.model", str(place.folder / "x.gguf")),
    "hub name": _set("teacher.model", "nobody/nothing-at-all"),
    "tp heads": _set("teacher.tensor_parallel", 3),
    "map": _set("teacher.device_map", {"model": "cpu"}),
    "memory": lambda p: (
        p.set("teacher.device_map", "auto"),
        p.set("teacher.max_memory", {"cpu": "lots"}),
    ),
    "tail": lambda p: (
        p.set("cache", {**p.raw["cache"], "k": 0, "m": 8, "drawn_from": "rest"}),
        p.set("interaction.tail", "rest"),
    ),
    "hidden block": _set("cache.hidden", {"block": 77}),
    "revision": _set("teacher.revision", "v9"),
    "url": _set("cache.path", "wasb://bucket/x"),
    "s3": _set("cache.path", "s3://bucket/x"),
    "template variables": _set("data.template_variables", {"messages": []}),
    "image root": _set("data.image_root", "nowhere"),
    "split": _set("data.split", "nosuch"),
    "empty data": lambda place: place.data.write_text(""),
    "read-only": lambda place: place.set("output", "/proc/nothing/here"),
    "nested tied": _untied,
}
DUMPS_AGAIN: dict[str, Case] = {
    "verbalizers beyond": _verbalizers_beyond,
    "verbalizers without weights": _verbalizers_without_weights,
    "other k": _set("cache.m", 7),
    "other seed": _set("seed", 9),
    "other shards": _set("cache.samples_per_shard", 2),
    "other data": _other_data,
    "other taps": _set("teacher.taps", [1, 3]),
    "other template": lambda place: (place.teacher / "chat_template.jinja").write_text(
        (place.teacher / "chat_template.jinja").read_text().replace("assistant", "assistant ")
    ),
    "manifest": _no_manifest,
}
TRAININGS: dict[str, Case] = {
    "student awq": _student_quantised,
    "student weights": lambda place: (place.student / "model.safetensors").unlink(),
    "student flash": _set("student.attn_implementation", "flash_attention_2"),
    "student taps": _set("student.taps", [0, 9]),
    "student tokens": _other_words,
    "student template": _student_template,
    "student other data": _other_data,
    "student tracker": _set("report_to", ["mlflow"]),
    "lost shard": _alone(_lost_shard),
    "cut shard": _alone(_cut_shard),
    "no manifest": _alone(_no_manifest),
    "too many taps": _set("student.taps", [0, 1, 2, 3]),
    "hidden not recorded": _alone(_set("interaction.hidden", {})),
    "target tap": _set("interaction.output_target", {"tap": 4}),
    "held-out data": _set("held_out.path", "nowhere.jsonl"),
    "held-out cache": _set("held_out.cache", "nowhere"),
    "select tap": _set("data.select", {"by": "disagreement", "tap": 4, "keep": 0.5}),
    "verbalizers of the teacher": _verbalizers_of_the_student,
    "student length": _set("data.max_length", 5),
    "part": _set("held_out.part", 0.0001),
    "part all": _set("held_out.part", 0.99999),
    "between": _set("data.select", {"by": "entropy", "between": [100.0, 200.0]}),
    "student own code": lambda place: _config(
        place.student, model_type="own", auto_map={"AutoConfig": "code.OwnConfig"}
    ),
    "student act": lambda place: _config(place.student, hidden_act="wish"),
    "student weights shape": lambda place: _config(place.student, intermediate_size=99),
    "no cache": _alone(lambda place: shutil.rmtree(place.cache)),
    "manifest other": lambda place: (place.cache / "index.json").write_text("{}"),
    "vocab": lambda place: _config(place.student, vocab_size=8),
}


def _words(result: Result) -> str:
    """The error of a command, or its traceback."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"TRACEBACK {result.exception!r}"
    lines = result.stderr.splitlines()
    (start,) = [row for row, line in enumerate(lines) if line.startswith("error: ")][:1] or [0]
    return "\n".join(lines[start:])


def explore(kind, cases, command, dumped, begun, tmp_path):
    for name, case in cases.items():
        place = _place(begun, tmp_path / name.replace(" ", "_").replace("'", ""), dumped=dumped)
        case(place)
        checked = _run("check", place, "--json")
        try:
            report = json.loads(checked.stdout)
            said = [f"{one['where']}: {one['why']}" for one in report["failures"]]
        except ValueError:
            said = ["NO JSON " + _words(checked)]
        ran = _run(command, place)
        words = _words(ran)
        ok = (
            ran.exit_code != 0
            and checked.exit_code != 0
            and any(one.split(": ", 1)[1][:60] in words or words[7:60] in one for one in said)
        )
        print(
            f"\n=== {kind} {name}: {'OK' if ok else 'DIFFER'} run {ran.exit_code} check {checked.exit_code}"
        )
        if not ok:
            print("   ran:", words[:700])
            for one in said[:4]:
                print("   said:", one[:500])
            if checked.exit_code == 0 or not said:
                print("   warnings:", checked.stderr[-600:])


def test_explore(begun, tmp_path):
    explore("dump", DUMPS, "dump-teacher", False, begun, tmp_path / "d")
    explore("again", DUMPS_AGAIN, "dump-teacher", True, begun, tmp_path / "a")
    explore("train", TRAININGS, "train-student", True, begun, tmp_path / "t")
