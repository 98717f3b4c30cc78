"""Signs of a hidden state: as the plain matrices give them, and without bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsi_cache.hidden import HiddenSigns, sign_rows
from vlsi_cache.hidden.reference import plain_direction, plain_rotation, plain_signs

KEY = "2a" + "0" * 62


def _states(count: int, width: int, seed: int) -> torch.Tensor:
    """States with one large entry, as language models have them."""
    states = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    states[:, width // 3] += 30
    return states


@settings(deadline=None, max_examples=20)
@given(
    width=st.integers(33, 150),
    bits=st.sampled_from([8, 40, 64]),
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(0, 65_535),
)
def test_signs_and_directions_are_those_of_plain_matrices(
    width: int, bits: int, seed: int, number: int
) -> None:
    state = _states(1, width, seed)
    signs, rows = HiddenSigns(width, bits, seed), torch.tensor([number])
    rotation = plain_rotation(width, seed, number)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-12)
    found = signs.encode(state, rows)
    np.testing.assert_array_equal(
        found[0].numpy(), plain_signs(state[0].double().numpy(), rotation, bits)
    )
    np.testing.assert_allclose(
        signs.decode(found, rows)[0].numpy(),
        plain_direction(found[0].numpy(), rotation, width),
        atol=1e-5,
    )


@pytest.mark.parametrize(("width", "bits"), [(576, 512), (576, 64), (100, 128)])
def test_estimates_have_the_direction_as_their_mean(width: int, bits: int) -> None:
    (state,) = _states(1, width, 0)
    rows = torch.from_numpy(sign_rows(KEY, 2048))
    signs = HiddenSigns(width, bits, 0)
    estimates = signs.decode(signs.encode(state.expand(2048, -1), rows), rows)
    mean, unit = estimates.mean(0), F.normalize(state, dim=0)
    # of 2,048 estimates, each with an error of about √(π/2 · W / b) in its length
    padded = 1 << (width - 1).bit_length()
    error = math.sqrt(math.pi / 2 * padded / bits / len(estimates))
    assert (mean - unit).norm() < 1.2 * error
    for cosine in (0.0, 0.7):
        other = F.normalize(_states(1, width, 1)[0], dim=0)
        other = F.normalize(other - (other @ unit) * unit, dim=0)
        turned = cosine * unit + math.sqrt(1 - cosine**2) * other
        read = estimates @ turned
        assert read.mean().item() == pytest.approx(cosine, abs=4 * read.std().item() / 45)


def test_a_token_keeps_its_signs_whatever_the_company() -> None:
    signs = HiddenSigns(48, 64, 0)
    states, rows = _states(5000, 48, 0), torch.from_numpy(sign_rows(KEY, 5000))
    whole = signs.encode(states, rows)
    assert torch.equal(whole[4321:4322], signs.encode(states[4321:4322], rows[4321:4322]))
    read = signs.decode(whole, rows)
    torch.testing.assert_close(read[4321:4322], signs.decode(whole[4321:4322], rows[4321:4322]))


def test_rotations_follow_the_samples_key_and_take_turns() -> None:
    assert sign_rows(KEY, 3).tolist() == [0x2A00, 0x2A00 + 40503, (0x2A00 + 2 * 40503) % 65536]
    assert len(set(sign_rows(KEY, 65536).tolist())) == 65536
    assert sign_rows(KEY, 0).tolist() == []


def test_no_tokens_have_no_signs() -> None:
    signs, rows = HiddenSigns(48, 64, 0), torch.empty(0, dtype=torch.long)
    found = signs.encode(torch.empty(0, 48), rows)
    assert found.shape == (0, 8)
    assert signs.decode(found, rows).shape == (0, 48)


def test_autocast_changes_no_sign_and_no_direction() -> None:
    signs, rows, states = HiddenSigns(48, 64, 0), torch.arange(9), _states(9, 48, 0)
    wanted = signs.encode(states, rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(signs.encode(states, rows), wanted)
        found = signs.decode(wanted, rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, signs.decode(wanted, rows))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_state_without_direction_gives_zeros(value: float) -> None:
    states = _states(2, 48, 0)
    states[1] = value
    found = HiddenSigns(48, 64, 0).encode(states, torch.tensor([7, 7]))
    assert found[0].any()
    assert not found[1].any()


def test_states_of_any_length_and_dtype_have_the_same_signs() -> None:
    signs, rows, states = HiddenSigns(48, 64, 0), torch.tensor([3]), _states(1, 48, 0)
    found = signs.encode(states, rows)
    for scale in (1e-30, 1e30):
        assert torch.equal(signs.encode(states * scale, rows), found)
    rounded = states.bfloat16()
    assert torch.equal(signs.encode(rounded, rows), signs.encode(rounded.float(), rows))


def test_the_signs_of_a_state_stay_what_they_are() -> None:
    state = (torch.arange(48.0)[None] ** 2).sin()  # none of its sums is near 0
    found = HiddenSigns(48, 64, 7).encode(state, torch.tensor([51200]))
    assert bytes(found[0].tolist()).hex() == "01396feb848dc8d0"
