"""Exits: kept with the student, exported, trained afterwards, and raw ones for transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.candidate_generator import EarlyExitCandidateGenerator

import vlsi_cache
from support.commands import run_job
from support.families import TEXT_FAMILIES, tiny_model
from support.runs import make_recipe
from vlsi_cache.errors import ModelError, RecipeError, StageError
from vlsi_cache.evaluation import Evaluation, evaluate_model
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.verbalizer import export_exits


def _changed(recipe: Recipe, **changes: Any) -> Recipe:
    raw = json.loads(recipe.model_dump_json())
    for section, change in changes.items():
        raw[section] = {**raw[section], **change} if isinstance(change, dict) else change
    return recipe_from_mapping(raw, where="test")


def _evaluated(recipe: Recipe, model: Path, exits: Path, **data: Any) -> Evaluation:
    student = {"model": str(model), "verbalizers": str(exits), "taps": None}
    return evaluate_model(_changed(recipe, student=student, data=data))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("exits"), interaction={"inner_schedule": None})
    dump_teacher(recipe)
    train_student(recipe)
    return _changed(recipe, cache={"path": str(recipe.cache_path)})


def test_both_students_keep_their_exits_and_one_call_reads_them(finished: Recipe) -> None:
    merged = finished.output / "interaction" / "model"
    said = {}
    for folder in (merged, finished.student_path):
        said[folder] = json.loads((folder / "exits" / "verbalizers.json").read_bytes())
        assert said[folder]["taps"] == [0, 2]
        assert (
            said[folder]["backbone"] == ".."
        )  # no path of this machine, where a student is shared
        exits = vlsi_cache.load_exits(folder, device="cpu")
        ids = torch.arange(3, 17).view(2, 7)
        with torch.no_grad():
            own = exits.model(ids, output_hidden_states=True)
            logits = exits(input_ids=ids, attention_mask=torch.ones_like(ids))
            rows = logits[-1].shape[-1]
            torch.testing.assert_close(logits[-1], own.logits[..., :rows])
            for tap in exits.taps:
                verbalizer, linear = exits.bank.layers[str(tap)][0], exits.bank.linear[str(tap)]
                hidden = own.hidden_states[tap + 1]
                read = hidden + verbalizer.change(hidden) + linear(hidden)
                expected = exits.model.lm_head(exits.model.model.norm(read))[..., :rows]
                torch.testing.assert_close(logits[tap], expected, rtol=1e-4, atol=1e-4)
    # stage three moves the student, and leaves its exits where they were
    weights = "exits/verbalizers.safetensors"
    assert (merged / weights).read_bytes() == (finished.student_path / weights).read_bytes()
    assert "stale" not in said[merged]
    assert said[finished.student_path]["stale"] is True
    with pytest.raises(ModelError, match="another backbone"):
        vlsi_cache.load_exits(merged, finished.student_path / "exits", device="cpu")


def test_exits_are_read_in_float16(finished: Recipe) -> None:
    whole = vlsi_cache.load_exits(finished.student_path, device="cpu")
    half = vlsi_cache.load_exits(finished.student_path, device="cpu", dtype="float16")
    assert {weight.dtype for weight in half.model.parameters()} == {torch.float16}
    ids = torch.arange(3, 17).view(2, 7)
    found, expected = half(input_ids=ids), whole(input_ids=ids)
    assert found.keys() == expected.keys()
    for tap, logits in found.items():
        torch.testing.assert_close(logits.float(), expected[tap], rtol=2e-2, atol=2e-2)


def test_exits_are_renewed_after_the_fact_with_the_student_frozen(
    finished: Recipe, tmp_path: Path
) -> None:
    student = finished.student_path
    before = (student / "model.safetensors").read_bytes()
    schedule = {"steps": 60, "target": "final", "learning_rate": 3e-3, "batch_size": 12}
    alone = {"model": str(student), "verbalization": schedule}
    renewing = _changed(
        finished, student=alone, stages=["verbalization"], output=str(tmp_path / "run")
    )
    train_student(renewing)
    assert (student / "model.safetensors").read_bytes() == before
    command = ["-m", "vlsi_cache.cli", "export-exits", tmp_path / "run", tmp_path / "out"]
    done = run_job(*command, check=True)
    assert f"exits at taps 0, 2 of {student}: {tmp_path / 'out'}" in done.stdout
    assert vlsi_cache.load_exits(student, tmp_path / "out", device="cpu").taps == (0, 2)
    old = _evaluated(finished, student, student / "exits")
    new = _evaluated(finished, student, tmp_path / "out")
    for before_tap, after in zip(old.taps, new.taps, strict=True):
        assert after.acceptance > before_tap.acceptance


def test_acceptance_and_tokens_are_those_of_plain_distributions(finished: Recipe) -> None:
    student = finished.student_path
    found = _evaluated(finished, student, student / "exits", limit=1)
    exits = vlsi_cache.load_exits(student, device="cpu")
    (messages,) = (json.loads(line)["messages"] for line in _lines(finished)[:1])
    prompt, answer = _encoded(exits.processor, messages)
    logits = exits(input_ids=torch.tensor([prompt + answer]))
    place = slice(len(prompt) - 1, -1)
    output = logits[-1][0, place].softmax(-1)
    for tap in found.taps:
        own = logits[tap.tap][0, place].softmax(-1)
        acceptance = float(torch.minimum(own, output).sum(-1).mean())
        assert tap.acceptance == pytest.approx(acceptance, rel=1e-5)
        agreement = (own.argmax(-1) == output.argmax(-1)).float().mean()
        assert tap.agreement == pytest.approx(float(agreement))
        tokens = (1 - acceptance**5) / (1 - acceptance)
        assert tap.tokens_per_verification == pytest.approx(tokens, rel=1e-4)


def _lines(recipe: Recipe) -> list[str]:
    return Path(str(recipe.data.path)).read_text(encoding="utf-8").splitlines()


def _encoded(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    prompt, whole = (
        tokenizer.apply_chat_template(some, add_generation_prompt=ask, return_dict=True)[
            "input_ids"
        ]
        for some, ask in ((messages[:-1], True), (messages, False))
    )
    stop = whole.index(tokenizer.eos_token_id, len(prompt)) + 1
    return prompt, whole[len(prompt) : stop]


def test_a_run_gives_its_latest_exits_and_says_what_is_missing(
    finished: Recipe, tmp_path: Path
) -> None:
    run, out = finished.output, tmp_path / "out"
    assert export_exits(run, out).stale
    exported = json.loads((out / "verbalizers.json").read_bytes())
    assert exported["backbone"] == "student"  # no path of this machine
    assert export_exits(run, out, replace=True).backbone == str(finished.student_path)
    with pytest.raises(StageError, match=r"not an empty folder.*--replace"):
        export_exits(run / "interaction" / "model", out)
    assert not export_exits(run / "interaction" / "model", out, replace=True).stale
    with pytest.raises(StageError, match="the exits themselves"):
        export_exits(out, out, replace=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StageError, match=r"found notes\.txt"):
        export_exits(run, tmp_path / "full", replace=True)
    with pytest.raises(ModelError, match="no such folder"):
        export_exits(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(ModelError, match="no exits here"):
        export_exits(tmp_path / "full", tmp_path / "new")
    weights = out / "verbalizers.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match="cannot be used"):
        export_exits(out, tmp_path / "new")
    config = json.loads((out / "verbalizers.json").read_bytes())
    export_exits(run, out, replace=True)
    (out / "verbalizers.json").write_text(json.dumps({**config, "taps": [0, 1]}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"expected taps 0, 1; found taps 0, 2"):
        export_exits(out, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_exits_that_rested_before_the_end_say_that_they_are_older(
    finished: Recipe, tmp_path: Path
) -> None:
    falls = {"inner_schedule": {"until": 0.5, "end": 0.0}}
    stages = ["verbalization", "interaction"]
    recipe = _changed(finished, output=str(tmp_path), interaction=falls, stages=stages)
    train_student(recipe)
    assert export_exits(tmp_path, tmp_path / "new").stale


def test_a_student_without_taps_has_no_exits_and_loses_those_of_before(
    finished: Recipe, tmp_path: Path
) -> None:
    recipe = _changed(finished, output=str(tmp_path), interaction={"inner": "none"})
    stale = tmp_path / "interaction" / "model" / "exits"
    export_exits(finished.output, stale)
    train_student(recipe)
    assert not stale.exists()
    with pytest.raises(ModelError, match=r"this student has no exits.*target=final"):
        export_exits(tmp_path, tmp_path / "new")


@pytest.mark.parametrize(
    ("verbalizer", "problem"),
    [({"depth": 2}, "depth.*logit_lens"), ({"residual": False}, "residual.*logit_lens")],
)
def test_a_raw_lens_is_nothing_else(verbalizer: dict[str, Any], problem: str) -> None:
    raw = {"student": {"verbalizer": {"structure": "logit_lens", **verbalizer}}}
    with pytest.raises(RecipeError, match=problem):
        recipe_from_mapping(raw, where="test")


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A student whose taps are raw logit lenses, which learns to answer with what is recorded."""
    recipe = make_recipe(tmp_path_factory.mktemp("lens"), finetuning={"steps": 40})
    rows = [json.loads(line) for line in _lines(recipe)]
    single = [{**row, "messages": row["messages"][:2]} for row in rows]
    path = Path(str(recipe.data.path))
    path.write_text("".join(json.dumps(row) + "\n" for row in single), encoding="utf-8")
    student = Path(str(recipe.student.model))
    model = AutoModelForCausalLM.from_pretrained(student)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(student)))
    model.save_pretrained(student)  # no padded rows, which a draft could choose
    recipe = _changed(
        recipe,
        student={"verbalizer": {"structure": "logit_lens"}},
        interaction={"inner_target": "output", "steps": 20},
    )
    dump_teacher(recipe)
    train_student(recipe)
    return _changed(recipe, cache={"path": str(recipe.cache_path)})


def _accepted(agrees: list[bool], tokens: list[int], eos: int) -> tuple[int, int]:
    """Count the drafts of one token each, and the accepted ones, by agreement at each position."""
    drafts = accepted = position = 0
    while position < len(tokens):
        drafts += 1
        taken = agrees[position] and tokens[position] != eos  # the output writes the end itself
        accepted += taken
        position += 1 + taken
    return drafts, accepted


@pytest.fixture
def matches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many drafted tokens each verification of transformers accepts."""
    found: list[int] = []
    plain = EarlyExitCandidateGenerator.update_candidate_strategy

    def watched(self: Any, input_ids: Any, scores: Any, num_matches: int) -> None:
        found.append(int(num_matches))
        plain(self, input_ids, scores, num_matches)

    monkeypatch.setattr(EarlyExitCandidateGenerator, "update_candidate_strategy", watched)
    return found


def test_raw_lenses_draft_for_the_student_in_plain_transformers(
    lens: Recipe, matches: list[int], tmp_path: Path
) -> None:
    student = lens.student_path
    model: Any = AutoModelForCausalLM.from_pretrained(student).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(student)
    exits = vlsi_cache.load_exits(student, device="cpu")
    assert list(exits.bank.parameters()) == []
    drafting = {"num_assistant_tokens": 1, "num_assistant_tokens_schedule": "constant"}
    model.generation_config.update(**drafting, assistant_confidence_threshold=0.0)
    eos, agreed, kept = tokenizer.eos_token_id, {0: [0, 0], 2: [0, 0]}, []
    greedy = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": eos, "pad_token_id": eos}
    for line in _lines(lens):
        prompt, answer = _encoded(tokenizer, json.loads(line)["messages"])
        ids = torch.tensor([prompt])
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **greedy}
        plain = model.generate(**asked)
        tokens = plain[0, len(prompt) :].tolist()
        logits = exits(input_ids=plain)
        says = {tap: rows[0, len(prompt) - 1 : -1].argmax(-1) for tap, rows in logits.items()}
        if tokens == answer:
            kept.append(line)
        for tap in exits.taps:
            matches.clear()
            assert torch.equal(model.generate(**asked, assistant_early_exit=tap + 1), plain)
            agrees = (says[tap] == says[-1]).tolist()
            # within the text, each draft is accepted just where tap and output agree
            _, accepted = _accepted(agrees, tokens, eos)
            assert sum(matches) == accepted
            if tokens == answer:
                agreed[tap][0] += sum(agrees)
                agreed[tap][1] += len(agrees)
    # and over texts that are the recorded ones, the agreement is what evaluate reports
    assert len(kept) >= 4
    (tmp_path / "kept.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    found = _evaluated(lens, student, student / "exits", path=str(tmp_path / "kept.jsonl"))
    rates = {tap.tap: tap.agreement for tap in found.taps}
    assert rates == pytest.approx({tap: part / whole for tap, (part, whole) in agreed.items()})
    assert 0 < rates[2] <= 1


def test_raw_lenses_are_never_stale_and_know_their_taps(lens: Recipe, tmp_path: Path) -> None:
    config = export_exits(lens.output, tmp_path / "out")
    assert (config.taps, config.stale, config.verbalizer.structure) == ([0, 2], False, "logit_lens")
    other = _changed(lens, student={"taps": [1, 3]})
    with pytest.raises(StageError, match=r"taps is \[0, 2\], asked for \[1, 3\]"):
        train_student(other)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_the_families_that_draft_for_themselves_are_those_that_the_page_names(family: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "exits.md").read_text(encoding="utf-8")
    model: Any = tiny_model(family)
    ids = torch.arange(5, 11)[None]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    asked |= {"max_new_tokens": 6, "pad_token_id": 0}
    try:
        drafted = model.generate(**asked, assistant_early_exit=2)
    except (ValueError, IndexError, AttributeError):
        assert f"`{family}`" not in page
        return
    assert f"`{family}`" in page
    assert torch.equal(drafted, model.generate(**asked))
