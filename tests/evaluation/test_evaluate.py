"""Evaluation: losses, divergence, layers and answers, against plain transformers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.commands import run_job
from support.runs import changed, make_recipe, save_image_model, write_conversations
from vlsi_cache.cli.main import cli
from vlsi_cache.data import encoder_for, load_conversations
from vlsi_cache.errors import CacheMismatchError, DataError, StageError
from vlsi_cache.evaluation import Evaluation, evaluate_model, evaluation_table
from vlsi_cache.evaluation.answers import (
    Answer,
    Answerer,
    answer_figures,
    is_right,
    normalised,
)
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import DataSection, ModelSection, Recipe
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("evaluation"))
    dump_teacher(recipe)
    return changed(recipe, cache={"path": str(recipe.cache_path)})


def _reference(recipe: Recipe) -> tuple[float, float, int]:
    """Label loss and KL(teacher ‖ student) per response token, by plain transformers.

    Rows of the head that are no tokens, which pad it for hardware, count nothing.
    """
    loaded = [
        AutoModelForCausalLM.from_pretrained(section.model, dtype=torch.float32).eval()
        for section in (recipe.teacher, recipe.student)
    ]
    tokenizer = AutoTokenizer.from_pretrained(recipe.student.model)
    loss = divergence = 0.0
    count = 0
    for line in Path(str(recipe.data.path)).read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        answers = [turn for turn, one in enumerate(messages) if one["role"] == "assistant"]
        for turn in answers:
            prompt, whole = (
                tokenizer.apply_chat_template(some, add_generation_prompt=ask, return_dict=True)[
                    "input_ids"
                ]
                for some, ask in ((messages[:turn], True), (messages[: turn + 1], False))
            )
            whole = whole[: whole.index(tokenizer.eos_token_id, len(prompt)) + 1]
            ids = torch.tensor([whole])
            with torch.no_grad():
                log_p, log_q = (
                    model(ids).logits[0, len(prompt) - 1 : -1, : len(tokenizer)].log_softmax(-1)
                    for model in loaded
                )
            labels = ids[0, len(prompt) :]
            loss -= float(log_q.gather(1, labels[:, None]).sum())
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
            count += len(labels)
    return loss / count, divergence / count, count


def test_loss_and_divergence_are_those_of_plain_transformers(dumped: Recipe) -> None:
    found = evaluate_model(dumped, with_cache=True, batch_size=5)
    loss, divergence, count = _reference(dumped)
    assert found.num_response_tokens == count
    assert found.loss_nats == pytest.approx(loss, rel=1e-4)
    assert found.divergence_nats is not None
    assert found.divergence_interval is not None
    # drawn tokens give an estimate: it is off by chance, which the interval shows
    width = found.divergence_interval[1] - found.divergence_nats
    assert abs(found.divergence_nats - divergence) < 3 * width + 0.02
    assert found.taps == []
    assert found.accuracy is None


def test_layers_are_compared_with_the_output(dumped: Recipe, tmp_path: Path) -> None:
    recipe = changed(dumped, output=str(tmp_path), stages=["verbalization"])
    folder = train_student(recipe)
    found = evaluate_model(changed(recipe, student={"taps": None, "verbalizers": str(folder)}))
    assert [tap.tap for tap in found.taps] == [0, 2]
    for tap in found.taps:
        assert 0 < tap.acceptance <= 1
        assert 0 <= tap.agreement <= 1
        assert tap.loss_nats > 0
    assert "acceptance" in _printed(found)


def _printed(found: Evaluation) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(evaluation_table(found))
    return console.export_text()


def test_answers_are_those_of_plain_generation(dumped: Recipe) -> None:
    found = evaluate_model(dumped, max_new_tokens=6, batch_size=4)
    model = AutoModelForCausalLM.from_pretrained(dumped.student.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(dumped.student.model)
    answers = []
    for line in Path(str(dumped.data.path)).read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        ids = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        given = model.generate(
            **ids, do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_token_id
        )
        text = tokenizer.decode(given[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(Answer(text, messages[-1]["content"]))
    assert found.answers == answer_figures(answers)
    assert found.answers["all"].count == 12
    shown = _printed(found)
    assert [one.sample for one in found.examples] == ["s0", "s2", "s4", "s7", "s9"]
    for one in found.examples:
        answer = answers[int(one.sample[1:])]
        assert (one.given, one.recorded) == (answer.given.strip(), answer.recorded)
        assert one.question.startswith("What is ")
        assert f"{one.sample}: asked" in shown
        assert one.recorded in shown
    assert "5 answers, spread over the data:" in shown
    assert "another text" not in shown, "a lone category says what the row of all says"


def test_pictures_are_part_of_the_question(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, images=True, num_samples=4)
    found = evaluate_model(recipe, max_new_tokens=3, batch_size=3)
    assert found.answers["all"].count == found.num_samples == 4


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "smolvlm", "gemma3_vision", "internvl"])
def test_questions_with_pictures_share_a_pass_and_get_the_same_answers(
    family: str, tmp_path: Path
) -> None:
    folder = save_image_model(tmp_path / "model", family=family, num_layers=4)
    data = write_conversations(tmp_path / "data.jsonl", 8, images=True)
    section = ModelSection(model=str(folder))
    model = load_backbone(section, "student", torch.device("cpu"))
    answerer = Answerer(model, encoder_for(model, DataSection()), 3)
    conversations = list(load_conversations(data))
    both = [*conversations[::2], *conversations[1::2]]  # with pictures, and without
    passes: list[int] = []
    hook = model.decoder.model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(1), with_kwargs=True
    )
    together = answerer(both)
    num_together, passes[:] = len(passes), []
    alone = [answer for one in both for answer in answerer([one])]
    hook.remove()
    assert [one.given for one in together] == [one.given for one in alone]
    assert len({one.given for one in alone}) > 1
    assert num_together <= len(passes) / 3


def test_answers_are_compared_without_case_marks_and_articles() -> None:
    assert normalised("The  Red, one!") == "red one"
    found = answer_figures(
        [
            Answer("Yes.", "yes"),
            Answer("no", "Yes"),
            Answer("about 12", "12"),
            Answer("A red one", "the red one"),
            Answer("It is unred one", "red one"),
        ]
    )
    assert answer_figures([Answer("", "A"), Answer("Answer: A", "A")])["all"].contains == 0.5
    numbers = answer_figures([Answer("15", "1.5"), Answer("3", "-3"), Answer("1.50.", "1.5")])
    assert numbers["number"].accuracy == pytest.approx(1 / 3)
    assert {name: (one.count, one.accuracy, one.contains) for name, one in found.items()} == {
        "all": (5, 0.4, 0.6),
        "yes/no": (2, 0.5, 0.5),
        "number": (1, 0.0, 1.0),
        "other": (2, 0.5, 0.5),
    }


def test_bad_input_is_named(dumped: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatchError, match="other data"):
        evaluate_model(changed(dumped, data={"limit": 5}), with_cache=True)
    rows = Path(str(dumped.data.path)).read_text(encoding="utf-8").splitlines()
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([rows[0], '{"messages": 3}', rows[1]]), encoding="utf-8")
    broken = changed(dumped, data={"path": str(path)})
    with pytest.raises(DataError, match=r"data\.jsonl"):
        evaluate_model(broken)
    found = evaluate_model(changed(broken, data={"on_error": "skip"}))
    assert (found.num_samples, found.num_left_out) == (2, 1)
    short = changed(dumped, data={"on_error": "skip", "max_length": 2})
    with pytest.raises(StageError, match="no sample could be evaluated"):
        evaluate_model(short)


def test_samples_without_a_record_are_left_out_of_the_divergence_alone(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, cache={"on_error": "skip"}, data={"max_length": 60})
    dump_teacher(recipe)
    failed = len(open_cache(recipe.cache_path).failures())
    assert 0 < failed < 12
    longer = changed(recipe, data={"max_length": None})
    whole = [evaluate_model(longer, with_cache=True, batch_size=size) for size in (1, 12)]
    assert whole[0].num_samples == 12
    assert whole[0].num_compared == whole[1].num_compared == 12 - failed
    assert whole[0].divergence_nats == pytest.approx(whole[1].divergence_nats, rel=1e-4)


def test_samples_without_a_question_are_said(dumped: Recipe, tmp_path: Path) -> None:
    asked = Path(str(dumped.data.path)).read_text(encoding="utf-8").splitlines()[0]
    data = tmp_path / "data.jsonl"
    data.write_text(f'{{"text": "plain words"}}\n{asked}\n{{"text": "more words"}}\n', "utf-8")
    command = ["evaluate", str(dumped.student.model), "--data", str(data), "--generate", "4"]
    done = CliRunner().invoke(cli, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert "2 of 3 samples have no turn with a text to answer" in done.stderr
    assert json.loads(done.stdout)["answers"]["all"]["count"] == 1


def test_the_command_prints_one_json_object(dumped: Recipe) -> None:
    done = run_job(
        *("-m", "vlsi_cache.cli", "evaluate", dumped.student.model),
        *("--data", dumped.data.path, "--cache", dumped.cache_path),
        *("--generate", "3", "--device", "cpu", "--json"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["loss_nats"] > 0
    assert found["divergence_nats"] is not None
    assert 0 <= found["accuracy"] <= 1


def test_a_choice_is_the_same_with_marks_and_an_article_beside_it() -> None:
    for given in ("A", "a.", "(A)", "A)"):
        assert is_right(Answer(given, "A")), given
    assert not is_right(Answer("B.", "A"))
    assert is_right(Answer("The red one.", "a red one"))
    assert normalised("!?") == "!?"


def test_answers_are_greedy_whatever_the_checkpoint_asks_for(
    dumped: Recipe, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(dumped.student.model)
    model.generation_config.update(repetition_penalty=3.0, num_beams=4, min_new_tokens=4)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(dumped.student.model).save_pretrained(tmp_path)
    other = changed(dumped, student={"model": str(tmp_path)})
    plain, asked = (
        evaluate_model(recipe, max_new_tokens=6, batch_size=4) for recipe in (dumped, other)
    )
    assert plain.answers == asked.answers
