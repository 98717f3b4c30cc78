"""The student: trained without the teacher, resumed, skipped when done, an ordinary checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from support.commands import Job, run_job
from support.runs import make_recipe, save_text_model, with_section, write_conversations
from vlsi_cache.data import IndexedConversations, encoder_for, load_data
from vlsi_cache.errors import CacheError, CacheMismatchError, RecipeError, StageError
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import InteractionSection, Recipe, recipe_from_mapping
from vlsi_cache.stagefiles import JournalLine
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.student.cached.batches import CachedBatches
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.verbalizer import build_verbalizers


def _dumped(folder: Path, *, k: int = 0, m: int = 12, **options: Any) -> Recipe:
    recipe = with_section(make_recipe(folder, **options), "cache", k=k, m=m, drawn_from="rest")
    dump_teacher(recipe, lambda _: None)
    return recipe


def _journal(recipe: Recipe) -> list[JournalLine]:
    text = (recipe.output / "interaction" / "matching.jsonl").read_text(encoding="utf-8")
    return [JournalLine.model_validate_json(line) for line in text.splitlines()]


def _scalars(recipe: Recipe) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(recipe.output / "interaction" / "tensorboard")).Reload()
    return {tag.removeprefix("train/"): events.Scalars(tag) for tag in events.Tags()["scalars"]}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_the_student_needs_no_teacher_and_comes_out_ordinary(images: bool, tmp_path: Path) -> None:
    recipe = _dumped(tmp_path, images=images)
    shutil.rmtree(tmp_path / "teacher")
    shutil.rmtree(recipe.teacher_verbalizers_path)
    student = train_student(recipe)
    assert student == recipe.output / "student"
    loader = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model: Any = loader.from_pretrained(student)
    base: Any = loader.from_pretrained(recipe.student.model)
    assert type(model) is type(base)
    original = AutoConfig.from_pretrained(recipe.student.model)
    assert AutoConfig.from_pretrained(student).to_diff_dict() == original.to_diff_dict()
    before, after = base.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.8 * len(before)
    processor: Any = AutoProcessor.from_pretrained(student)
    AutoProcessor.from_pretrained(recipe.student.model).save_pretrained(tmp_path / "unused")
    for path in (tmp_path / "unused").iterdir():
        assert (student / path.name).read_bytes() == path.read_bytes(), path.name
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "What?"}] if images else "What?"}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert model.generate(**prompt, max_new_tokens=2).shape[1] == prompt["input_ids"].shape[1] + 2

    before_rerun = {path: path.stat().st_mtime_ns for path in student.iterdir()}
    assert train_student(recipe) == student
    assert {path: path.stat().st_mtime_ns for path in student.iterdir()} == before_rerun


def test_interaction_lowers_the_divergence_to_the_teacher(tmp_path: Path) -> None:
    recipe = _dumped(tmp_path)
    update = {"steps": 30, "save_every": 1000, "inner_schedule": None}
    interaction = recipe.interaction.model_copy(update=update)
    recipe = recipe.model_copy(
        update={"interaction": interaction, "stages": ["verbalization", "interaction"]}
    )
    train_student(recipe)
    scalars = _scalars(recipe)
    for name in ("kl_output", "kl_tap_0", "kl_tap_2", "match_tap_0", "match_tap_2", "loss"):
        assert name in scalars, sorted(scalars)
    output = [event.value for event in scalars["kl_output"]]
    # a few draws of a tiny, undecided teacher: one step's estimate says little
    assert sum(output[-8:]) / 8 < 0.7 * sum(output[:2]) / 2

    lines = _journal(recipe)
    assert [line.step for line in lines] == list(range(1, 31))
    assert (lines[0].student_taps, lines[0].teacher_taps) == ([0, 2], [1, 3, 5])
    shares = torch.tensor([line.share for line in lines])
    torch.testing.assert_close(shares.sum(-1), torch.ones(30, 2))
    assert (shares[:, 0, 2] == 0).all(), "room is kept for the tap that follows"
    assert (shares[:, 1, 0] == 0).all()
    divergence = torch.tensor([line.divergence for line in lines])
    assert divergence.shape == (30, 2, 3)
    assert divergence[-1].mean() < divergence[0].mean()
    for line in lines:
        assert line.temperature is not None
        assert line.choice is not None
        for temperature, often in zip(line.temperature, line.choice, strict=True):
            assert (temperature is None) == (often == 0)
            assert temperature is None or temperature > 0
    # the block that a tap met in one step, in TensorBoard and in the journal
    met = [event.value for event in scalars["match_tap_2"]]
    torch.testing.assert_close(torch.tensor(met), shares[:, 1] @ torch.tensor([1.0, 3.0, 5.0]))


@pytest.mark.parametrize(
    "matching",
    [
        {"granularity": "sample"},
        {"strategy": "uniform"},
        {"strategy": "bottom-3", "search_range": False, "order": False},
        {"temperature": "scale_free"},
        {"strategy": "expected"},
        {"strategy": "expected", "granularity": "sample"},
        {"strategy": "shortest", "granularity": "sample"},
    ],
    ids=lambda matching: "-".join(map(str, matching.values())),
)
def test_every_kind_of_matching_trains(matching: dict[str, Any], dumped: Recipe) -> None:
    interaction = dumped.interaction.model_copy(
        update={"steps": 1, "matching": dumped.interaction.matching.model_copy(update=matching)}
    )
    recipe = dumped.model_copy(
        update={
            "interaction": interaction,
            "stages": ["verbalization", "interaction"],
            "cache": dumped.cache.model_copy(update={"path": dumped.cache_path}),
            "output": dumped.output.with_name("-".join(map(str, matching.values()))),
        }
    )
    assert (train_student(recipe) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "metrics"),
    [
        ({"inner": "none"}, {"kl_output"}),
        ({"output": "none", "inner_schedule": None}, {"kl_tap_0", "kl_tap_2"}),
        ({"inner": "ce", "output": "ce"}, {"ce_tap_0", "ce_tap_2", "ce_output"}),
        (
            {"inner": "js", "output": "reverse", "tail": "bucket"},
            {"js_tap_0", "js_tap_2", "reverse_output"},
        ),
        ({"inner": "l2", "output": "skewed", "tail": "bucket"}, {"l2_tap_0", "skewed_output"}),
        ({"tail": "renormalize"}, {"kl_tap_0", "kl_output"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_comparison_trains(
    changes: dict[str, Any], metrics: set[str], dumped: Recipe, tmp_path: Path
) -> None:
    interaction = dumped.interaction.model_copy(update={"steps": 2, **changes})
    recipe = dumped.model_copy(
        update={
            "interaction": interaction,
            "stages": ["verbalization", "interaction"],
            "cache": dumped.cache.model_copy(update={"path": dumped.cache_path}),
            "output": tmp_path / "run",
        }
    )
    assert (train_student(recipe) / "model.safetensors").is_file()
    assert metrics <= _scalars(recipe).keys()
    assert recipe.student_verbalizers_path.exists() == (changes.get("inner") != "none")


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_a_cache_of_draws_alone_has_one_reading(tail: str, tmp_path: Path) -> None:
    recipe = with_section(_dumped(tmp_path), "interaction", tail=tail)
    mend = r"cache\.k: 16 and cache\.drawn_from: whole"
    with pytest.raises(CacheMismatchError, match=rf"tail is {tail}.*draws alone.*{mend}"):
        train_student(recipe)
    assert not recipe.student_verbalizers_path.exists(), "it is said before anything is trained"


def test_a_cache_without_draws_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = with_section(_dumped(tmp_path, k=4, m=0), "interaction", steps=1)
    train_student(recipe.model_copy(update={"stages": ["verbalization", "interaction"]}))
    assert "no draws. Scaled to sum to 1, they are a biased target" in caplog.text


def test_plain_logit_distillation_needs_no_verbalizers(dumped: Recipe, tmp_path: Path) -> None:
    """Neither the stage in the recipe, nor as many teacher taps as the student's."""
    raw = json.loads(dumped.model_dump_json())
    raw["cache"]["path"] = str(dumped.cache_path)
    raw["output"] = str(tmp_path / "run")
    raw["stages"] = ["interaction", "finetuning"]
    with pytest.raises(RecipeError, match="interaction without verbalization"):
        recipe_from_mapping(raw, where="test")
    raw["interaction"]["inner"] = "none"
    raw["student"]["taps"] = [0, 1, 2, 3]
    assert (train_student(recipe_from_mapping(raw, where="test")) / "config.json").is_file()


def test_the_expected_matching_has_the_mean_of_the_drawn_losses(dumped: Recipe) -> None:
    """One batch, one student: Algorithm 1's loss over many draws against its exact mean."""
    cpu = torch.device("cpu")
    batch: dict[str, Any] = {}

    def losses(strategy: str, count: int) -> torch.Tensor:
        student = load_backbone(dumped.student, "student", cpu)
        bank = build_verbalizers(student.decoder, (0, 2), dumped.student.verbalizer, seed=0)
        matching = dumped.interaction.matching.model_copy(update={"strategy": strategy})
        module = Interaction(
            student,
            bank,
            dumped.interaction.model_copy(update={"matching": matching}),
            teacher_taps=(1, 3, 5),
            seed=0,
        )
        if not batch:
            dataset = IndexedConversations(load_data(dumped.data))
            collate = CachedBatches(
                encoder_for(student, dumped.data), open_cache(dumped.cache_path), "sample"
            )
            batch.update(collate([dataset[index] for index in range(4)]))
        with torch.no_grad():
            return torch.stack([module(**batch)["loss"] for _ in range(count)])

    drawn, expected = losses("multinomial", 300), losses("expected", 1)
    assert drawn.std() > 0
    assert abs(drawn.mean() - expected.item()) < 5 * drawn.std() / 300**0.5


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return _dumped(tmp_path_factory.mktemp("student"), k=4, m=4)


def test_fine_tuning_alone_needs_no_cache(dumped: Recipe, tmp_path: Path) -> None:
    recipe = dumped.model_copy(update={"stages": ["finetuning"], "output": tmp_path / "alone"})
    assert (train_student(recipe) / "model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["finetuning", "interaction"])
def test_gradient_checkpointing_and_accumulation_change_no_result(
    stage: str, dumped: Recipe, tmp_path: Path
) -> None:
    stages = ["finetuning"] if stage == "finetuning" else ["verbalization", "interaction"]
    uniform = {"matching": dumped.interaction.matching.model_copy(update={"strategy": "uniform"})}

    def trained(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        recipe = with_section(
            dumped, stage, **changes, **(uniform if stage == "interaction" else {})
        )
        recipe = with_section(recipe, "cache", path=dumped.cache_path)
        return _weights(
            train_student(recipe.model_copy(update={"stages": stages, "output": tmp_path / name}))
        )

    plain = trained("plain")
    for name, changes in {
        "checkpointed": {"gradient_checkpointing": True},
        "accumulated": {"batch_size": 1, "gradient_accumulation": 4},
    }.items():
        for key, value in trained(name, **changes).items():
            torch.testing.assert_close(value, plain[key], atol=5e-4, rtol=1e-3)


def test_a_bound_on_passes_changes_no_result_but_to_rounding(
    dumped: Recipe, tmp_path: Path
) -> None:
    """Passes in pieces, against the same grouped samples in whole micro-batches."""
    uniform = {"matching": dumped.interaction.matching.model_copy(update={"strategy": "uniform"})}

    def trained(bound: int) -> dict[str, torch.Tensor]:
        recipe = with_section(dumped, "interaction", batch_tokens=bound, **uniform)
        recipe = with_section(recipe, "finetuning", batch_tokens=bound)
        verbalization = recipe.student.verbalization.model_copy(update={"batch_tokens": bound})
        recipe = with_section(recipe, "student", verbalization=verbalization)
        recipe = with_section(recipe, "cache", path=dumped.cache_path)
        return _weights(train_student(recipe.model_copy(update={"output": tmp_path / str(bound)})))

    whole = trained(100_000)
    for key, value in trained(100).items():
        torch.testing.assert_close(value, whole[key], atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("stage", ["interaction", "finetuning"])
def test_a_diverged_stage_is_an_error_and_no_student(
    stage: str, dumped: Recipe, tmp_path: Path
) -> None:
    wild = {"learning_rate": 1e30, "final_learning_rate": 1e30}
    recipe = with_section(dumped, stage, **wild)
    recipe = with_section(recipe, "cache", path=dumped.cache_path)
    with pytest.raises(StageError, match=r"not finite|loss is (nan|inf)"):
        train_student(recipe.model_copy(update={"output": tmp_path / "run"}))
    assert not (tmp_path / "run" / "student").exists()


def test_a_finished_stage_whose_result_is_gone_is_made_again(
    dumped: Recipe, tmp_path: Path
) -> None:
    recipe = dumped.model_copy(update={"stages": ["finetuning"], "output": tmp_path / "run"})
    student = train_student(recipe)
    weights = _weights(student)
    shutil.rmtree(student)
    again = _weights(train_student(recipe))
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("lost", "moment"),
    [("folder", "saving"), ("model.safetensors", "saving"), ("config.json", "moving")],
)
def test_a_student_killed_while_it_is_saved_again_is_never_taken_for_done(
    lost: str, moment: str, dumped: Recipe, tmp_path: Path
) -> None:
    """The record of the first time must not vouch for what the second time left half written."""
    recipe = dumped.model_copy(update={"stages": ["finetuning"], "output": tmp_path / "run"})
    student = train_student(recipe)
    weights = _weights(student)
    if lost == "folder":
        shutil.rmtree(student)
    else:
        (student / lost).unlink()
    file = tmp_path / "recipe.json"
    file.write_text(recipe.model_dump_json(), encoding="utf-8")
    assert run_job("-c", KILLED_WHILE_SAVING, file, moment).returncode == -signal.SIGKILL
    record = json.loads((recipe.output / "finetuning" / "stage.json").read_text("utf-8"))
    assert not record["finished"]
    again = _weights(train_student(recipe))
    assert again.keys() == weights.keys()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert AutoModelForCausalLM.from_pretrained(student) is not None
    assert not student.with_name("student.partial").exists()


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import torch
from transformers import modeling_utils
from vlsi_cache.recipe import Recipe
from vlsi_cache import train_student
def save_file(*arguments, **options):
    # config.json is on disk by now, the weights are not
    partial = recipe.output / "student.partial"
    assert (partial / "config.json").is_file()
    assert not list(partial.glob("*.safetensors"))
    os.kill(os.getpid(), signal.SIGKILL)
replace = Path.replace
def move(source, target):
    replace(source, target)
    if source.parent.name == "student.partial":
        os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(1)
if sys.argv[2] == "saving":
    modeling_utils.safe_save_file = save_file
else:
    Path.replace = move
recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
train_student(recipe)
"""


def test_how_often_to_log_and_save_is_no_other_setting(dumped: Recipe, tmp_path: Path) -> None:
    recipe = dumped.model_copy(update={"stages": ["finetuning"], "output": tmp_path / "run"})
    train_student(recipe)
    train_student(with_section(recipe, "finetuning", log_every=7, save_every=3, workers=1))
    with pytest.raises(StageError, match="dtype is"):
        train_student(with_section(recipe, "student", dtype="bfloat16"))


def test_a_stage_made_with_other_settings_is_not_taken_over(dumped: Recipe, tmp_path: Path) -> None:
    recipe = dumped.model_copy(update={"stages": ["finetuning"], "output": tmp_path / "run"})
    train_student(recipe)
    changed = with_section(recipe, "finetuning", learning_rate=3e-3)
    with pytest.raises(StageError, match=r"finetuning\.learning_rate is 0\.01, asked for 0\.003"):
        train_student(changed)


def test_a_cache_of_other_data_is_refused(dumped: Recipe, tmp_path: Path) -> None:
    other = write_conversations(tmp_path / "other.jsonl", 11)
    with pytest.raises(CacheMismatchError, match=r"cache was made for other data.*12 samples"):
        train_student(with_section(dumped, "data", path=str(other)))


def test_the_same_rows_in_another_order_are_named_as_that(dumped: Recipe, tmp_path: Path) -> None:
    rows = Path(str(dumped.data.path)).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(reversed(rows)), encoding="utf-8")
    turned = with_section(dumped, "data", path=str(tmp_path / "turned.jsonl"))
    with pytest.raises(CacheMismatchError, match=r"sample 's11' stands in another place than in"):
        train_student(turned)


def test_a_shard_of_another_size_is_refused_before_any_step(dumped: Recipe, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(dumped.cache_path, copy)
    last = copy / "shards" / "00002.zarr.zip"
    last.write_bytes(last.read_bytes()[:-1])
    moved = with_section(dumped, "cache", path=copy)
    recipe = moved.model_copy(update={"output": tmp_path / "run"})
    with pytest.raises(CacheError, match=r"00002\.zarr\.zip: shard is damaged"):
        train_student(recipe)
    assert not (tmp_path / "run" / "student-verbalizers").exists()


def test_an_incomplete_cache_is_refused(dumped: Recipe, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(dumped.cache_path, copy)
    (copy / "shards" / "00002.zarr.zip").unlink()
    with pytest.raises(CacheError, match=r"00002\.zarr\.zip: file is missing, although index"):
        train_student(with_section(dumped, "cache", path=copy))
    (copy / "index.json").unlink()
    with pytest.raises(CacheError, match="cache is incomplete: 1 of 3 shards missing"):
        train_student(with_section(dumped, "cache", path=copy))


def test_a_student_of_another_tokenizer_is_refused(dumped: Recipe, tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "other", num_layers=4)
    tokenizer: Any = AutoProcessor.from_pretrained(folder)
    tokenizer.add_tokens(["brand-new"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CacheMismatchError, match="tokenizers of teacher and student differ"):
        train_student(with_section(dumped, "student", model=str(folder)))


def test_a_student_whose_template_answers_differently_is_refused(
    dumped: Recipe, tmp_path: Path
) -> None:
    folder = save_text_model(tmp_path / "other", num_layers=4)
    tokenizer: Any = AutoProcessor.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'] }}!"
    )
    tokenizer.save_pretrained(folder)
    recipe = with_section(dumped, "student", model=str(folder))
    recipe = with_section(recipe, "cache", path=dumped.cache_path)
    with pytest.raises(CacheMismatchError, match="other response tokens than the teacher's"):
        train_student(recipe.model_copy(update={"output": tmp_path / "run"}))


def test_too_few_teacher_taps_are_refused_before_the_first_step(
    dumped: Recipe, tmp_path: Path
) -> None:
    recipe = with_section(dumped, "student", taps=[0, 1, 2, 3])
    recipe = with_section(recipe, "cache", path=dumped.cache_path)
    recipe = recipe.model_copy(update={"output": tmp_path / "run"})
    with pytest.raises(StageError, match="fewer teacher taps than student taps"):
        train_student(recipe)
    assert not recipe.student_verbalizers_path.exists(), "found before verbalization"


def test_a_killed_student_goes_on_and_ends_with_the_same_weights(
    dumped: Recipe, tmp_path: Path
) -> None:
    def recipe_file(name: str) -> tuple[Path, Path]:
        raw = json.loads(dumped.model_dump_json())
        raw["cache"]["path"] = str(dumped.cache_path)
        raw["output"] = str(tmp_path / name)
        for section in (raw["interaction"], raw["finetuning"]):
            section.update(steps=8, save_every=2)
        raw["interaction"]["inner_schedule"] = None  # taps are matched to the end
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return path, tmp_path / name

    def start(path: Path) -> Job:
        command = ["-m", "vlsi_cache.cli", "train-student", "--recipe", path]
        with Path(os.devnull).open("wb") as nowhere:
            return Job(*command, stdout=nowhere.fileno())

    unbroken, result = recipe_file("unbroken")
    assert start(unbroken).wait(300) == 0
    broken, broken_result = recipe_file("broken")
    for stage in ("interaction", "finetuning"):
        process = start(broken)
        deadline = time.monotonic() + 300
        while not list((broken_result / stage).glob("checkpoint-[46]/trainer_state.json")):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # a torn checkpoint, as a kill in the middle of saving leaves it
    (broken_result / "finetuning" / "checkpoint-7").mkdir()
    assert start(broken).wait(300) == 0
    expected, found = _weights(result / "student"), _weights(broken_result / "student")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    journals = [run / "interaction" / "matching.jsonl" for run in (result, broken_result)]
    first, second = (path.read_text(encoding="utf-8") for path in journals)
    assert [json.loads(line)["step"] for line in first.splitlines()] == list(range(1, 9))
    assert first == second, "what was written after the checkpoint is written again, not twice"


def test_verbalizers_may_be_clipped_by_themselves(tmp_path: Path) -> None:
    """A norm near 0 for them alone leaves the adapters' steps as they are without clipping."""
    recipe = make_recipe(tmp_path / "data", stages=["verbalization", "interaction"])
    dump_teacher(recipe)
    found = {}
    for name, settings in (
        ("loose", {"max_grad_norm": 1e6}),
        ("apart", {"max_grad_norm": 1e6, "verbalizer_max_grad_norm": 1e-9}),
        ("together", {"max_grad_norm": 1e-9}),
    ):
        changes = {
            **recipe.interaction.model_dump(mode="json"),
            **settings,
            "verbalizer_learning_rate": 1e-12,  # so that the adapters alone tell
        }
        section = InteractionSection.model_validate(changes)
        update = {"interaction": section, "output": tmp_path / name}
        update["cache"] = recipe.cache.model_copy(update={"path": recipe.cache_path})
        found[name] = load_file(
            train_student(recipe.model_copy(update=update)) / "model.safetensors"
        )
    assert all(torch.equal(value, found["apart"][name]) for name, value in found["loose"].items())
    assert any(
        not torch.equal(value, found["together"][name]) for name, value in found["loose"].items()
    )
