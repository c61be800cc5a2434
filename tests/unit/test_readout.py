"""The readout's statistics are those of a float64 softmax, also where a softmax in float32 would fail."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.core.rng import generator
from components.core.types import STATISTICS, Needs
from components.decode import readout

torch.set_num_threads(1)


EVERYTHING = Needs(statistics=STATISTICS)


def by_definition(logits_NV: Tensor, forbidden: list[int], top_k: int) -> dict[str, Tensor]:
    logits_NV = logits_NV.double().clone()
    logits_NV[:, forbidden] = -torch.inf
    token_N1 = logits_NV.argmax(-1, keepdim=True)
    log_NV = logits_NV.log_softmax(-1)
    others_NV = log_NV.scatter(-1, token_N1, -torch.inf)
    log_odds_N = (log_NV.gather(-1, token_N1) - others_NV.logsumexp(-1, keepdim=True)).squeeze(-1)
    top_NK = log_NV.exp().sort(-1, descending=True).values[:, :top_k]
    return {
        "token": token_N1.squeeze(-1),
        "confidence": log_NV.amax(-1).exp(),
        "log_odds": log_odds_N.clamp(-readout.LOG_ODDS_LIMIT, readout.LOG_ODDS_LIMIT),
        "margin": log_NV.amax(-1).exp() - others_NV.amax(-1).exp(),
        "entropy": -(log_NV.exp() * log_NV.masked_fill(log_NV == -torch.inf, 0.0)).sum(-1),
        "top": torch.nn.functional.pad(top_NK, (0, top_k - top_NK.shape[-1])),
    }


def read(logits_NV: Tensor, forbidden: list[int], needs: Needs = EVERYTHING) -> dict[str, Tensor]:
    return readout.read(lambda x: x, logits_NV, torch.tensor(forbidden, dtype=torch.int64), needs, logits_NV.shape[-1])


TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float64: dict(rtol=1e-10, atol=1e-12),
    torch.float32: dict(rtol=2e-5, atol=2e-6),
    # bfloat16 logits are exact numbers: what is read from them is as good as from float32 ones
    torch.bfloat16: dict(rtol=2e-5, atol=2e-6),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(2, 40),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    forbid=st.integers(0, 20),
    top_k=st.integers(0, 45),
)
def test_statistics_are_those_of_a_float64_softmax(
    dtype: torch.dtype, seed: int, vocabulary: int, scale: float, forbid: int, top_k: int
):
    source = generator("readout", seed)
    logits_NV = (scale * torch.randn(5, vocabulary, generator=source, dtype=torch.float64)).to(dtype)
    forbidden = torch.randperm(vocabulary, generator=source)[: min(forbid, vocabulary - 1)].tolist()
    wanted = by_definition(logits_NV, forbidden, top_k)
    found = read(logits_NV, forbidden, Needs(top_k=top_k, statistics=STATISTICS))
    assert torch.equal(found["token"], wanted["token"])
    assert not any(token in forbidden for token in found["token"].tolist())
    for name in ("confidence", "log_odds", "margin", "entropy", *(["top"] if top_k else [])):
        torch.testing.assert_close(
            found[name].double(), wanted[name], **TOLERANCE[dtype], msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_log_odds_stay_exact_where_the_confidence_rounds_to_one():
    gaps = torch.arange(0.0, 40.0, 2.5)
    found = read(torch.stack([gaps, torch.zeros_like(gaps)], -1), [])
    assert torch.equal(found["log_odds"], gaps.clamp(max=readout.LOG_ODDS_LIMIT))
    assert bool((found["confidence"][gaps > 20] == 1).all())
    # p log 1/p of the loser, to the last digits, where 1 - p is lost in float32
    sure = gaps[(gaps > 20) & (gaps < 30)].double()
    torch.testing.assert_close(
        found["entropy"][(gaps > 20) & (gaps < 30)].double(), (1 + sure) * (-sure).exp(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("value", [0.0, 1e3, -1e3])
def test_ties_go_to_the_lowest_allowed_id(value: float):
    found = read(torch.full((1, 6), value), [0, 3])
    assert found["token"].tolist() == [1]
    assert found["margin"].tolist() == [0.0]
    assert found["confidence"].item() == pytest.approx(1 / 4)
    assert found["entropy"].item() == pytest.approx(math.log(4))
    assert found["log_odds"].item() == pytest.approx(-math.log(3))


@pytest.mark.parametrize("other", [-5.0, 2e3, -math.inf])
def test_a_single_allowed_token_is_certain(other: float):
    logits = torch.full((1, 4), other)
    logits[0, 2] = -7.0
    found = read(logits, [0, 1, 3], Needs(top_k=2, statistics=STATISTICS))
    assert found["token"].tolist() == [2]
    assert found["confidence"].tolist() == found["margin"].tolist() == [1.0]
    assert found["entropy"].tolist() == [0.0]
    assert found["log_odds"].tolist() == [readout.LOG_ODDS_LIMIT]
    assert found["top"].tolist() == [[1.0, 0.0]]


def test_the_logits_are_not_changed_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    logits_NV = torch.randn(50, 9, generator=generator("chunks"), dtype=torch.float64)
    before = logits_NV.clone()
    whole = read(logits_NV, [0], Needs(top_k=3, drift=1, statistics=STATISTICS))
    monkeypatch.setattr(readout, "chunk_bytes", lambda device: (7 * 9 * 4, 3 * 9 * 4))
    parts = read(logits_NV, [0], Needs(top_k=3, drift=1, statistics=STATISTICS))
    assert torch.equal(logits_NV, before)
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    asked=st.sets(st.sampled_from(STATISTICS)),
    top_k=st.integers(0, 3),
    drift=st.integers(0, 1),
)
def test_only_what_is_asked_for_is_read_and_is_the_same_beside_whatever_else(
    seed: int, asked: set[str], top_k: int, drift: int
):
    logits_NV = 5 * torch.randn(6, 12, generator=generator("asked", seed))
    found = read(logits_NV, [1], Needs(top_k=top_k, drift=drift, statistics=asked))
    assert set(found) == {"token", "confidence", *asked} | ({"top"} if top_k else set()) | (
        {"log_probs"} if drift else set()
    )
    everything = read(logits_NV, [1], Needs(top_k=top_k, drift=1, statistics=STATISTICS))
    for name, value in found.items():
        assert torch.equal(value, everything[name]), name


def test_no_position_is_asked_for_and_none_is_answered():
    found = read(torch.zeros(0, 5), [0], Needs(top_k=2, statistics=STATISTICS))
    assert {name: tuple(v.shape) for name, v in found.items()} == {
        "token": (0,),
        "confidence": (0,),
        "log_odds": (0,),
        "margin": (0,),
        "entropy": (0,),
        "top": (0, 2),
    }


def test_drift_is_the_divergence_from_the_distribution_before_and_infinite_without_one():
    source = generator("drift")
    now, before = (torch.randn(4, 6, generator=source, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    before[3] = torch.nan
    found = readout.drift(now, before)
    wanted = torch.nn.functional.kl_div(before, now, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found[:3], wanted[:3])
    assert found[3] == torch.inf
    assert readout.drift(now, now).tolist() == [0.0] * 4


def test_what_is_forbidden_has_no_part_in_drift():
    head = torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[1.0, 2.0, -50.0]])
    now, before = (read(x, [2], Needs(drift=1))["log_probs"] for x in head)
    assert readout.drift(now, before).tolist() == [0.0]


@pytest.mark.parametrize("needs", [Needs(), Needs(statistics=STATISTICS, top_k=6, top_ids=True)], ids=["plain", "all"])
@pytest.mark.parametrize("deviation", [1.0, 19.0, 80.0])
def test_what_is_too_small_for_a_float32_is_left_out_and_moves_no_bit(
    deviation: float, needs: Needs, monkeypatch: pytest.MonkeyPatch
):
    """A CPU takes many times as long for subnormal numbers; logits of a sure model give thousands of them."""
    logits_NV = deviation * torch.randn(6, 9_000, generator=generator("sharp"))
    logits_NV[0, 7] = 500.0  # so sure that all of its entropy is subnormal
    smallest, seen = torch.finfo(torch.float32).tiny, []
    inside = readout._odds

    def watched(gap_NV: Tensor, second_N: Tensor | None) -> Tensor:
        odds_NV = inside(gap_NV, second_N)
        seen.append(int(((odds_NV > 0) & (odds_NV < smallest)).sum()))
        return odds_NV

    monkeypatch.setattr(readout, "_odds", watched)
    found = read(logits_NV[1:], [3], needs)
    assert deviation > 20 or not any(seen)
    sure = read(logits_NV[:1], [3], needs)
    monkeypatch.setattr(readout, "_odds", lambda gap_NV, second_N: gap_NV.exp())
    for mine, rows_NV in ((found, logits_NV[1:]), (sure, logits_NV[:1])):
        wanted = read(rows_NV, [3], needs)
        assert all(torch.equal(mine[name], wanted[name]) for name in wanted), deviation


@pytest.mark.parametrize("vocabulary", [5_000, 8 * 512, 8 * 512 + 1, 10_239])
def test_the_winner_of_a_large_vocabulary_is_the_lowest_of_the_largest(vocabulary: int):
    logits_NV = torch.randn(40, vocabulary, generator=generator("pieces"))
    places = torch.randint(vocabulary, (40, 3), generator=generator("places"))
    places[:2] = torch.tensor([[vocabulary - 1] * 3, [vocabulary - 1, 511, 512]])
    logits_NV.scatter_(1, places, 9.0)
    assert torch.equal(read(logits_NV, [])["token"], places.amin(1))
    assert torch.equal(read(torch.zeros(1, vocabulary), [0, 1])["token"], torch.tensor([2]))


@pytest.mark.parametrize("vocabulary", [300, 5_000, 8 * 512, 16 * 512, 16 * 512 + 1, 10_239])
@pytest.mark.parametrize("top_k", [1, 2, 8, 15, 40])
def test_the_largest_of_a_large_vocabulary_are_those_of_a_stable_sort(vocabulary: int, top_k: int):
    """Few values, so that many are equal: within a piece of the vocabulary, between pieces and in the rest."""
    logits_NV = torch.randint(-4, 5, (24, vocabulary), generator=generator("ties")).float()
    logits_NV[:8] = torch.randn(8, vocabulary, generator=generator("none"))
    logits_NV[8] = -torch.inf
    logits_NV[8, -3:] = 0.0
    logits_NV[9] *= -0.0
    needs = Needs(top_k=top_k, top_ids=True, statistics=("margin", "entropy"))
    found, plain = (read(logits_NV, [5], asked) for asked in (needs, replace(needs, top_ids=False)))
    wanted_NV = logits_NV.clone() + 0.0
    wanted_NV[:, 5] = -torch.inf
    order_NV = wanted_NV.clamp(min=readout.NEVER).sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(found["top_ids"], order_NV[:, :top_k])
    for name in plain:
        assert torch.equal(found[name], plain[name]), name
