"""The proof's rival learns what a record of everything teaches. Its intervals are Student's."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.runs import make_recipe
from vlsi_cache.data import IndexedConversations, encoder_for, load_data
from vlsi_cache.models import Backbone, load_backbone
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache
from vlsi_cache.student.cached.batches import CachedBatches
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.verbalizer import build_verbalizers, load_verbalizers

FOLDER = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import one another by bare names."""
    monkeypatch.syspath_prepend(FOLDER)


def _learnt(module: Interaction, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    loss = module(**batch)["loss"]
    loss.backward()
    found = [value.grad for value in module.parameters() if value.grad is not None]
    assert found
    return loss.detach(), found


def _student(recipe: Recipe) -> Backbone:
    return load_backbone(recipe.student, "student", CPU)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("inner", ["forward", "none"])
def test_the_rival_learns_what_a_record_of_everything_teaches(inner: str, tmp_path: Path) -> None:
    from experiments.first_proof.online import OnlineInteraction

    first = make_recipe(tmp_path)
    teacher = load_backbone(first.teacher, "teacher", CPU)
    recipe = make_recipe(
        tmp_path,
        cache={"k": teacher.vocab_size, "m": 0},
        interaction={"inner": inner, "inner_weight": 0.3, "lora": {"rank": 2}},
    )
    dump_teacher(recipe, lambda _: None)
    data = IndexedConversations(load_data(recipe.data))
    student = _student(recipe)
    cache = open_cache(recipe.cache_path)
    collate = CachedBatches(encoder_for(student, recipe.data), cache, "sample")
    batch = collate([data[index] for index in range(6)])
    readers = load_verbalizers(
        recipe.teacher_verbalizers_path, teacher.decoder, fingerprint=teacher.fingerprint
    )
    student_taps = () if inner == "none" else (0, 2)

    def bank(backbone: Backbone) -> Any:
        return build_verbalizers(backbone.decoder, student_taps, recipe.student.verbalizer, seed=0)

    settings = recipe.interaction
    ours = Interaction(student, bank(student), settings, teacher_taps=readers.taps, seed=0)
    expected = _learnt(ours, batch)
    bare = {name: value for name, value in batch.items() if name != "targets"}
    beside = _student(recipe)
    rival = OnlineInteraction(
        teacher, readers, beside, bank(beside), settings, teacher_taps=readers.taps, seed=0
    )
    found = _learnt(rival, bare)
    # a record's log-probabilities are float16: from -8 to -4 nats they err by up to 2^-9
    torch.testing.assert_close(found[0], expected[0], rtol=2**-9, atol=0.0)
    assert len(found[1]) == len(expected[1])
    for gradient, wanted in zip(found[1], expected[1], strict=True):
        assert (gradient - wanted).norm() <= 2**-9 * wanted.norm()


@pytest.mark.usefixtures("benchmarks")
def test_means_and_differences_of_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.first_proof.setting import QUICK, Setting
    from experiments.first_proof.summary import summarize

    losses = {"output-cache": [5.0, 5.2, 5.1], "output-online": [4.9, 5.3]}
    runs = tmp_path / "runs"
    runs.mkdir()
    for name, found in losses.items():
        for seed, loss in enumerate(found):
            final = {"label_loss": loss, "divergence_nats": 1.0, "token_accuracy": 0.5}
            final["by_kind"] = {"word": {"exact_answers": 0.0}}  # type: ignore[assignment]
            run = {
                "arm": name,
                "seed": seed,
                "rates": {},
                "final": final,
                "curve": [],
                "wall_seconds": 1.0,
            }
            (runs / f"{name}-seed{seed}.json").write_text(json.dumps(run), encoding="utf-8")
    monkeypatch.setattr(Setting, "results", tmp_path)
    result = summarize(QUICK)
    by_name = {arm["name"]: arm for arm in result["arms"]}
    three = by_name["output-cache"]["label_loss"]
    assert three["mean"] == pytest.approx(5.1)
    # t of 2 degrees of freedom, two-sided 95 %: 4.303
    assert three["interval"] == pytest.approx(4.303 * statistics.stdev([5.0, 5.2, 5.1]) / 3**0.5)
    (difference,) = result["differences"]
    assert difference["seeds"] == [0, 1]
    assert difference["label_loss"]["mean"] == pytest.approx(0.0)
    assert difference["label_loss"]["interval"] == pytest.approx(12.706 * 0.1)
