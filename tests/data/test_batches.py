"""Collation, in the process and in spawned workers."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from support.processors import image_processor_for
from vlsi_cache.data import (
    BatchEncoder,
    IndexedConversations,
    TokenBatches,
    load_conversations,
    response_positions,
)


def test_a_collated_batch_holds_the_row_of_each_token(write_rows: Any, mixed_rows: Any) -> None:
    items = IndexedConversations(load_conversations(write_rows(mixed_rows)))
    collate = TokenBatches(BatchEncoder(image_processor_for("qwen2_vl"), max_length=None))
    batch = collate([items[2], items[0]])
    assert len(items) == 3
    assert [index for index, _ in (items[2], items[0])] == [2, 0]
    assert set(batch) == {"inputs", "positions", "labels", "token_samples"}
    assert "response_mask" not in batch["inputs"], "no model's forward takes it"
    assert len(batch["positions"]) == len(batch["labels"]) == len(batch["token_samples"])
    assert batch["token_samples"].unique().tolist() == [0, 1]


def test_spawned_workers_give_the_same_batches(write_rows: Any, mixed_rows: Any) -> None:
    items = IndexedConversations(load_conversations(write_rows(mixed_rows)))
    collate = TokenBatches(BatchEncoder(image_processor_for("qwen2_vl"), max_length=None))
    here = list(DataLoader(items, batch_size=2, collate_fn=collate))
    there = list(
        DataLoader(
            items,
            batch_size=2,
            collate_fn=collate,
            num_workers=1,
            multiprocessing_context="spawn",
        )
    )
    assert len(here) == len(there) == 2
    for ours, theirs in zip(here, there, strict=True):
        assert ours["inputs"].keys() == theirs["inputs"].keys()
        for name, value in ours.pop("inputs").items():
            assert torch.equal(value, theirs["inputs"][name])
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_positions_of_a_hand_made_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 0, 1]], dtype=torch.bool)
    assert response_positions(mask).tolist() == [1, 2, 5, 8]
    assert response_positions(torch.zeros(2, 3, dtype=torch.bool)).shape == (0,)
