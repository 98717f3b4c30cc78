"""A recorder's records stand for the distributions of the head."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.heads import make_head
from vlsi_cache.sampling import (
    ORDER_FILE,
    TapRecorder,
    recorder,
    remembered_order,
    vocabulary_order,
)

VOCAB, HIDDEN = 60, 6


def features(num_taps: int, num_tokens: int) -> list[torch.Tensor]:
    return list(torch.randn(num_taps, num_tokens, HIDDEN))


@pytest.mark.parametrize(("k", "m"), [(0, 12), (3, 0), (3, 4)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_means_over_many_records_are_the_distributions(
    k: int, m: int, softcap: float | None
) -> None:
    torch.manual_seed(0)
    head = make_head(VOCAB, HIDDEN, bias=True, dtype=torch.float32, softcap=softcap)
    count, label = 3000, 5
    one = features(3, 1)
    labels, dice = torch.full((count,), label), torch.rand(count, 3, dtype=torch.float64)
    record = TapRecorder(head, k=k, m=m).record(
        [tap.expand(count, -1) for tap in one], labels, dice
    )
    assert (record.shape, record.k, record.m) == ((count, 3), k, m)
    for tap, read in enumerate(one):
        log_p = torch.log_softmax(head.logits(read)[0], -1)
        here = record[:, tap]
        entropy = -(log_p.exp() * log_p).sum()
        np.testing.assert_allclose(here.entropy.mean(), entropy, atol=0.01)
        np.testing.assert_allclose(here.label_log_prob.mean(), log_p[label], atol=0.02)
        if m:
            mean = np.bincount(
                here.token_ids.ravel(), here.weights().ravel(), minlength=VOCAB
            ) / len(here)
            np.testing.assert_allclose(mean, log_p.exp(), atol=0.02)
        if k:
            np.testing.assert_array_equal(here.token_ids[0, :k], log_p.topk(k).indices)


@pytest.mark.parametrize("k", [0, 2])
def test_records_do_not_depend_on_how_many_tokens_are_read_at_once(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    head = make_head(VOCAB, HIDDEN, dtype=torch.float64)
    taps = [tap.double() for tap in features(4, 11)]
    labels, dice = torch.randint(VOCAB, (11,)), torch.rand(11, 4, dtype=torch.float64)

    def read() -> tuple[np.ndarray, np.ndarray]:
        record = TapRecorder(head, k=k, m=5).record(taps, labels, dice)
        return record.token_ids, record.entropy

    whole = read()
    monkeypatch.setattr(recorder, "_CPU_ELEMENTS", VOCAB * 4 * 3)
    for left, right in zip(read(), whole, strict=True):
        np.testing.assert_array_equal(left, right)


def test_no_tokens_give_an_empty_record() -> None:
    head = make_head(VOCAB, HIDDEN, dtype=torch.float32)
    record = TapRecorder(head, k=0, m=3).record(
        features(2, 0), torch.empty(0).long(), torch.empty(0, 2, dtype=torch.float64)
    )
    assert record.token_ids.shape == (0, 2, 3)


@pytest.mark.parametrize("shape", [(1, 4), (16, 4), (17, 4), (500, 4), (300, 200)])
def test_the_order_is_a_permutation_and_the_same_every_time(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    weight = torch.randn(shape)
    order = vocabulary_order(weight)
    assert order.sort().values.tolist() == list(range(shape[0]))
    assert torch.equal(order, vocabulary_order(weight))


def test_an_order_is_computed_once_for_a_head_and_again_if_its_file_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(4)
    weight, other = torch.randn(2, 400, 20)
    path = tmp_path / "run" / ORDER_FILE
    order = remembered_order(weight, path.parent)
    assert torch.equal(order, vocabulary_order(weight))
    written = path.stat().st_mtime_ns, path.read_bytes()
    assert torch.equal(remembered_order(weight, path.parent), order)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written
    swapped = bytearray(written[1])
    swapped[-16:] = swapped[-8:] + swapped[-16:-8]  # still a permutation
    for damaged in (bytes(swapped), written[1][:50], b""):
        path.write_bytes(damaged)
        assert torch.equal(remembered_order(weight, path.parent), order)
        assert torch.equal(load_file(path)["order"], order)
    assert torch.equal(remembered_order(other, path.parent), vocabulary_order(other))
    assert [file.name for file in path.parent.iterdir()] == [ORDER_FILE]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_order_that_cannot_be_kept_is_computed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weight = torch.randn(40, 4)
    (tmp_path / "file").touch()
    assert torch.equal(remembered_order(weight, tmp_path / "file"), vocabulary_order(weight))
    assert "is not kept" in caplog.text


def test_the_order_keeps_similar_rows_together() -> None:
    torch.manual_seed(3)
    centres = torch.randn(8, 20) * 4
    group = torch.arange(400) % 8
    weight = centres[group] + torch.randn(400, 20) * 0.1
    ordered = group[vocabulary_order(weight)]
    assert int((ordered[1:] != ordered[:-1]).sum()) < 30, "of 399 neighbours"
