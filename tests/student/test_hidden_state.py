"""A hidden state of the teacher, from the pass over the cache into the student."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from support.caches import HIDDEN, make_manifest, write_part
from support.runs import changed, make_recipe, save_text_model
from vlsi_cache.data import IndexedConversations, encoder_for, load_data
from vlsi_cache.errors import CacheMismatchError, ModelError, RecipeError
from vlsi_cache.hidden import HiddenSigns, sign_rows
from vlsi_cache.models import load_backbone, run_backbone
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import merge_caches, open_cache
from vlsi_cache.student import train_student
from vlsi_cache.student.cached import CachedBatches
from vlsi_cache.student.hidden_state import HiddenTarget, hidden_target
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.teacher.checks import dump_checks
from vlsi_cache.verbalizer import build_verbalizers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    hidden = {"hidden": {"bits": 64}}
    recipe = make_recipe(
        tmp_path_factory.mktemp("hidden"), cache=hidden, interaction={"hidden": {}}
    )
    dump_teacher(recipe)
    return changed(recipe, cache={"path": str(recipe.cache_path)})


def _batch(recipe: Recipe, role: str, **options: Any) -> dict[str, Any]:
    backbone = load_backbone(getattr(recipe, role), role, CPU)
    samples = IndexedConversations(load_data(recipe.data))
    cache = open_cache(recipe.cache_path)
    batches = CachedBatches(encoder_for(backbone, recipe.data), cache, "sample", **options)
    return batches([samples[index] for index in (3, 1, 8)])


def test_the_cache_holds_the_signs_of_the_teachers_block(dumped: Recipe) -> None:
    cache = open_cache(dumped.cache_path)
    kept = cache.manifest.hidden
    assert kept is not None
    assert (cache.manifest.format_version, kept.block, kept.num_blocks) == (3, 5, 8)
    teacher = load_backbone(dumped.teacher, "teacher", CPU)
    batch = _batch(dumped, "teacher", with_hidden=True)
    with torch.no_grad():
        states, _ = run_backbone(teacher.decoder, (5,), batch["inputs"], batch["positions"])
    signs = HiddenSigns(kept.width, kept.bits, dumped.seed)
    rows = np.concatenate(
        [sign_rows(cache[index].key, len(cache[index].response_ids)) for index in (3, 1, 8)]
    )
    assert batch["rotations"].tolist() == rows.tolist()
    wanted = signs.encode(states[5].at(batch["positions"]), batch["rotations"])
    differing = np.unpackbits((wanted ^ batch["hidden_signs"]).numpy()).mean()
    assert differing < 0.01  # a coordinate near 0 may round to either side in other company


def test_the_loss_is_the_outputs_and_as_much_for_the_hidden_state(dumped: Recipe) -> None:
    student = load_backbone(dumped.student, "student", CPU)
    cache = open_cache(dumped.cache_path)
    section = dumped.interaction.model_copy(update={"inner": "none"})
    bank = build_verbalizers(student.decoder, (), dumped.student.verbalizer, seed=0)
    taps = cache.manifest.taps[:-1]
    without = section.model_copy(update={"hidden": None})
    alone = Interaction(student, bank, without, teacher_taps=taps, seed=0)
    output = alone(**_batch(dumped, "student"))["loss"]
    student = load_backbone(dumped.student, "student", CPU)
    plain = Interaction(student, bank, section, teacher_taps=taps, seed=0)
    batch = _batch(dumped, "student", with_hidden=True)
    with pytest.raises(TypeError, match="hidden state"):
        plain(**batch)  # nothing says yet which block learns it
    plain.hidden = hidden_target(cache, student.decoder, section)
    assert plain.hidden is not None
    assert plain.hidden.block == 1  # 4 blocks: two before the last, as the teacher's of 8 is
    with pytest.raises(TypeError, match="hidden state"):
        plain(**_batch(dumped, "student"))
    loss = plain(**batch)["loss"]
    torch.testing.assert_close(loss, 2 * output)  # weight 1: as much again
    states, _ = run_backbone(student.decoder, (1,), batch["inputs"], batch["positions"])
    direction = plain.hidden.signs.decode(batch["hidden_signs"], batch["rotations"])
    own = states[1].at(batch["positions"])
    distance = 1 - (F.normalize(own, dim=-1) * direction).sum(-1).mean()
    total, count = plain.collect()["hidden_cosine"]
    assert float(total / count) == pytest.approx(1 - distance.item(), rel=1e-4)
    trained = [value for value in plain.parameters() if value.requires_grad]
    found = torch.autograd.grad(loss, trained)
    plain.hidden, plain.settings = None, without
    again = plain(**_batch(dumped, "student"))["loss"]
    parts = torch.autograd.grad(again + distance * (again / distance).detach(), trained)
    for one, other in zip(found, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_divergence_below_0_turns_nobody_away() -> None:
    target = HiddenTarget(0, HiddenSigns(48, 64, 0), weight=2.0)
    for output, cosines, wanted in (
        (-0.1, [0.5, 0.7], 0.0),  # the estimate of a small divergence
        (0.8, [0.5, 0.7], 1.6),
        (0.8, [1.2, 0.79], 0.8),  # a mean of 1 − cos below a hundredth: half of it, half the loss
        (0.8, [1.2, 0.9], 0.0),  # nothing but noise is left to learn
    ):
        found = target.weighed(torch.tensor(cosines), torch.tensor(output))
        assert found.item() == pytest.approx(wanted, rel=1e-3)
    spare = target.weighed(torch.tensor([0.5]), torch.tensor(0.8), counts=0)
    assert spare.item() == 0.0  # a pass that only keeps in step with other processes


def test_a_student_comes_nearer_to_the_state_by_it(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cosines = {}
    caplog.set_level(logging.INFO, "vlsi_cache")
    for name, hidden in (("with", {"weight": 3.0}), ("without", None)):
        recipe = changed(
            dumped,
            output=str(tmp_path / name),
            stages=["verbalization", "interaction"],
            interaction={"hidden": hidden, "steps": 12, "log_every": 4},
        )
        caplog.clear()
        model = train_student(recipe)
        assert ("a hidden state, which is not learned" in caplog.text) == (hidden is None)
        student = load_backbone(
            recipe.student.model_copy(update={"model": str(model)}), "student", CPU
        )
        batch = _batch(dumped, "student", with_hidden=True)
        with torch.no_grad():
            states, _ = run_backbone(student.decoder, (1,), batch["inputs"], batch["positions"])
        target = hidden_target(open_cache(dumped.cache_path), student.decoder, dumped.interaction)
        assert target is not None
        direction = target.signs.decode(batch["hidden_signs"], batch["rotations"])
        own = F.normalize(states[1].at(batch["positions"]), dim=-1)
        cosines[name] = (own * direction).sum(-1).mean().item()
        lines = (tmp_path / name / "interaction" / "metrics.jsonl").read_text().splitlines()
        logged = ["hidden_cosine" in json.loads(line)["metrics"] for line in lines]
        assert all(logged) == (hidden is not None)
    assert cosines["with"] > cosines["without"] + 0.1


def test_what_does_not_fit_is_refused_before_anything_trains(
    dumped: Recipe, tmp_path: Path
) -> None:
    wide = save_text_model(tmp_path / "wide", num_layers=4, changes={"hidden_size": 48})
    alike = {"interaction": {"hidden": {"map": "identity"}}}
    neither: dict[str, Any] = {"cache": {"path": None, "hidden": None}}
    neither["interaction"] = {"hidden": None}
    plain = changed(dumped, output=str(tmp_path / "plain"), **neither)
    dump_teacher(plain)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"interaction": {"hidden": {"block": 4}}}, ModelError, "interaction.hidden.block"),
        ({"interaction": {"output": "none"}}, RecipeError, "weighs by the output's loss"),
        ({"cache": {"path": str(plain.cache_path)}}, CacheMismatchError, "no hidden state"),
        ({"student": {"model": str(wide)}, **alike}, CacheMismatchError, "32; found 48"),
    ]
    for changes, error, words in cases:
        with pytest.raises(error, match=words):
            train_student(changed(dumped, output=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run" / "student-verbalizers").exists()


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        ({"bits": 72}, "cache.hidden.bits: more signs .* at most 64"),
        ({"bits": 65}, "cache.hidden.bits"),
        ({"block": 8}, "cache.hidden.block: the teacher has no such block"),
        (None, "cache.hidden: interaction.hidden learns a hidden state"),
    ],
)
def test_a_record_that_cannot_be_made_is_refused(
    dumped: Recipe, tmp_path: Path, hidden: dict[str, int] | None, words: str
) -> None:
    with pytest.raises((RecipeError, ModelError), match=words):
        dump_teacher(changed(dumped, output=str(tmp_path), cache={"path": None, "hidden": hidden}))


def test_a_dump_says_that_a_state_could_be_recorded(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for hidden in (None, {}):
        caplog.clear()
        recipe = changed(
            dumped,
            output=str(tmp_path),
            cache={"path": None, "hidden": hidden},
            interaction={"hidden": hidden},
        )
        with caplog.at_level(logging.INFO, "vlsi_cache"):
            for check in dump_checks(recipe):
                check()
        assert ("same hidden size" in caplog.text) == (hidden is None)


def test_a_cache_with_a_state_is_not_one_without(dumped: Recipe, tmp_path: Path) -> None:
    for hidden in (None, {"bits": 64, "block": 4}):
        with pytest.raises(CacheMismatchError, match=r"--set cache\.hidden='{block: 5, bits: 64}'"):
            dump_teacher(changed(dumped, cache={"hidden": hidden}, interaction={"hidden": None}))


def test_a_merged_cache_keeps_the_states(tmp_path: Path) -> None:
    manifest = make_manifest(hidden=HIDDEN)
    parts = [write_part(tmp_path / name, numbers, **_version_3()) for name, numbers in PARTS]
    merge_caches(tmp_path / "merged", parts)
    both = [record for part in parts for record in open_cache(part)]
    for record, wanted in zip(open_cache(tmp_path / "merged"), both, strict=True):
        assert record.hidden_signs is not None
        np.testing.assert_array_equal(record.hidden_signs, wanted.hidden_signs)
    assert open_cache(tmp_path / "merged").manifest.hidden == manifest.hidden


PARTS = (("one", [0, 1, 2]), ("two", [3, 4]))


def _version_3() -> dict[str, Any]:
    return {"hidden": HIDDEN, "format_version": 3}
