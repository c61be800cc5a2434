"""Key-value caches: exact at a refresh, stale outside their window in between, and a row's own affair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from components.bench.reference import reference_rollout
from components.core.errors import SettingsError
from components.core.rng import generator
from components.core.types import Canvas, Needs
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import embedded
from components.denoisers.cached import KINDS, CachedDenoiser
from components.denoisers.transformer import TransformerDenoiser
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.heuristics import (
    Threshold,
)
from components.policies.rules import heuristic

torch.set_num_threads(1)

CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=1e-4)  # transformers' RMSNorm goes through float32 even in a float64 model
CASES = [(kind, layout) for kind in KINDS for layout in ("llada", "dream")]


def transformer(layout: str, layers: int = 3) -> TransformerDenoiser:
    """Random, in float64, its predictions neither flat nor certain."""
    denoiser, _ = embedded.build(layout, "abcdefg", embedded.Shape(16, layers, 2, 24, 64), seed=3)
    denoiser.model.double()
    with torch.no_grad():
        for name, weight in denoiser.model.named_parameters():
            weight *= 12.0 if "lm_head" in name else 4.0 if weight.ndim == 2 else 1.0
    return denoiser


def job_of(block: int | None = None) -> Job:
    """Prompts, canvases and blocks of different sizes; ``block``: all of that size."""
    sizes = [(3, 8, 4), (1, 8, 2), (5, 6, 3), (2, 4, 4), (4, 8, 1)]
    source = generator("cached")
    prompts = [torch.randint(5, 11, (size,), generator=source) for size, _, _ in sizes]
    prompt_R = torch.arange(len(sizes)).repeat_interleave(2)
    member_R = torch.arange(2).repeat(len(sizes))
    _, length_P, block_P = torch.tensor(sizes).T
    block_R = block_P[prompt_R] if block is None else torch.full_like(prompt_R, block)
    return Job(prompts, prompt_R, prompt_R + 7, member_R, length_P[prompt_R], block_R, torch.zeros_like(prompt_R))


def learned(**shape: Any) -> ConfidencePolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = ConfidencePolicy(Shape(width=8, heads=2, mlp_width=16, bias=-1.0, **shape)).double()
        for weight in policy.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return policy.eval()


def canvas_of(denoiser: TransformerDenoiser, prompt: int, filled: list[int], block: tuple[int, int]) -> Canvas:
    """One row of eight canvas positions, those of ``filled`` given, position i with token 5 + i % 6."""
    ids = torch.full((8,), denoiser.mask_id)
    ids[filled] = 5 + torch.tensor(filled, dtype=torch.int64) % 6
    ids_BT = torch.cat([torch.arange(prompt) % 5 + 5, ids]).unsqueeze(0)
    block_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    block_BT[:, prompt + block[0] : prompt + block[1]] = True
    return Canvas(ids_BT, torch.ones_like(block_BT), prompt, block_BT)


def by_transformers_own_cache(
    denoiser: TransformerDenoiser, kind: str, refresh: Canvas, now: Canvas, first: int, last: int
) -> Tensor:
    """(1, W, D) states of the window, over the library's own cache of a whole forward, the window cut out of it."""
    from transformers import DynamicCache

    model, whole = denoiser.model.model, refresh.ids_BT.shape[1]
    cache = DynamicCache()
    everything = torch.ones(1, 1, whole, whole, dtype=torch.bool)
    model(input_ids=refresh.ids_BT, attention_mask=everything, past_key_values=cache, use_cache=True)
    kept = torch.tensor([i for i in range(whole) if not first <= i <= last], dtype=torch.int64)
    for layer in cast(Any, cache.layers):
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    window = slice(first, last + 1)
    return model(
        input_ids=now.ids_BT[:, window],
        attention_mask=everything[:, :, window],
        past_key_values=cache,
        use_cache=True,
        position_ids=torch.arange(whole)[None, window],
    ).last_hidden_state


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_a_window_is_what_the_library_s_own_cache_gives_and_the_rest_is_of_the_last_refresh(kind: str, layout: str):
    inner = transformer(layout)
    denoiser, prompt, block = CachedDenoiser(inner, kind), 3, (2, 5)
    canvases = [canvas_of(inner, prompt, filled, block) for filled in ([0, 1], [0, 1, 3], [0, 1, 2, 3])]
    refreshed, state = denoiser.hidden(canvases[0], denoiser.start(canvases[0]))
    torch.testing.assert_close(refreshed, inner.hidden(canvases[0])[0], **CLOSE)  # exact at the refresh
    first, last = prompt + block[0] - inner.shifted, prompt + (block[1] - 1 if kind == "dual" else 7)
    for now in canvases[1:]:
        found, state = denoiser.hidden(now, state)
        wanted = refreshed.clone()
        states_BWD = by_transformers_own_cache(inner, kind, canvases[0], now, first, last)
        fresh = slice(first + inner.shifted, min(last + 1 + inner.shifted, wanted.shape[1]))
        wanted[:, fresh] = states_BWD[:, : fresh.stop - fresh.start]
        torch.testing.assert_close(found, wanted, **CLOSE)
        exact, _ = inner.hidden(now)
        assert not torch.allclose(found[:, prompt : prompt + 2], exact[:, prompt : prompt + 2], **CLOSE)  # stale
    following = canvas_of(inner, prompt, [0, 1, 2, 3, 4], (5, 8))
    torch.testing.assert_close(denoiser.hidden(following, state)[0], inner.hidden(following)[0], **CLOSE)


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_with_a_refresh_at_every_step_nothing_is_approximate(kind: str, layout: str):
    """In blocks of one every step is a block's first."""
    inner, job, policy = transformer(layout), job_of(block=1), learned(where="all")
    pair, options = (inner, CachedDenoiser(inner, kind)), DecodeOptions(record=True, rows=4)
    exact, cached = (rollout(denoiser, policy, job, options) for denoiser in pair)
    assert torch.equal(cached.canvas_RL, exact.canvas_RL)
    one, two = exact.steps, cached.steps
    assert one is not None and two is not None
    order = [(s.row_N * 100 + s.step_N).argsort() for s in (one, two)]
    for name, value in one.observation.tensors().items():
        torch.testing.assert_close(two.observation.tensors()[name][order[1]], value[order[0]], **CLOSE)


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_one_layer_s_keys_and_values_are_never_stale(kind: str, layout: str):
    """They depend on a position's own token; a rule over the current block then decides as without a cache."""
    inner, job = transformer(layout, layers=1), job_of()
    for policy in (Threshold(0.3), learned(where="eligible", inputs=("log_odds", "bound"))):
        exact, cached = (
            rollout(d, policy, job, DecodeOptions(seed=4, rows=4)) for d in (inner, CachedDenoiser(inner, kind))
        )
        assert torch.equal(cached.canvas_RL, exact.canvas_RL) and torch.equal(cached.order_RL, exact.order_RL)


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_a_cached_row_decodes_alone_as_in_company_and_as_in_the_plain_loop(kind: str, layout: str):
    denoiser, job = CachedDenoiser(transformer(layout), kind), job_of()
    for policy in (learned(where="all"), heuristic("entropy_bound", 0.7)):
        base = DecodeOptions(seed=6, force_commit=False)
        wanted = reference_rollout(denoiser, policy, job, base)
        for switches in (dict(rows=3), dict(rows=4, tokens=20), dict(rows=2, refill=False), dict(rows=1)):
            found = rollout(denoiser, policy, job, replace(base, **switches))
            for name in ("canvas_RL", "order_RL", "nfe_R"):
                assert torch.equal(getattr(found, name), getattr(wanted, name)), (name, switches)
        assert found.forwards == found.useful == int(found.nfe_R.sum())  # it is asked at every step


def test_a_cache_is_an_approximation():
    """Else the tests above would say nothing."""
    inner, job = transformer("llada"), Job.of([torch.tensor([5, 6, i]) for i in range(5, 11)], 8, 4)
    exact, prefix, dual = (
        rollout(d, heuristic("confidence", 1), job, DecodeOptions()).canvas_RL
        for d in (inner, *(CachedDenoiser(inner, kind) for kind in KINDS))
    )
    assert not torch.equal(exact, prefix) and not torch.equal(exact, dual) and not torch.equal(prefix, dual)


def test_the_cache_counts_in_the_memory_of_a_row():
    from components.decode import memory

    inner = transformer("llada")
    plain, cached = (memory.count(job_of(), d, Needs()).row for d in (inner, CachedDenoiser(inner, "dual")))
    keys_and_values = 2 * 3 * 13 * 16 * 8  # layers, columns, width, bytes
    assert cached - plain >= keys_and_values


def test_what_cannot_be_cached_is_refused():
    inner = transformer("llada")
    with pytest.raises(SettingsError, match="cache 'all' is unknown"):
        CachedDenoiser(inner, "all")
    bare = replace(canvas_of(inner, 2, [], (0, 4)), block_BT=None)
    denoiser = CachedDenoiser(inner, "dual")
    with pytest.raises(ValueError, match="has no block_BT"):
        denoiser.hidden(bare, denoiser.start(bare))
