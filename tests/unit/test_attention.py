"""What a pair policy reads: the tokens of the largest probabilities, and the frozen model's own attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from components.core.errors import SettingsError
from components.core.rng import generator
from components.core.types import Canvas, Needs, Observation, Steps
from components.decode import readout
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import TransformerDenoiser
from components.denoisers.cached import CachedDenoiser
from components.denoisers.formula import FormulaDenoiser
from components.denoisers.protocol import attended, attention_layers
from components.denoisers.transformer import places
from components.policies.heuristics import Quota

torch.set_num_threads(1)

WORDS, LAYERS, MASK = 40, 3, 3
SIZES: dict[str, Any] = dict(
    vocab_size=WORDS,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
)
EVERYTHING = Needs("masked", top_k=6, top_ids=True, attention=(-1, 0))


@pytest.fixture(scope="module", params=["llada", "dream", "a2d-qwen3"])
def denoiser(request: pytest.FixtureRequest) -> TransformerDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "llada":
            return TransformerDenoiser(LlamaForCausalLM(LlamaConfig(**SIZES)), MASK, range(WORDS), shifted=False)
        if request.param == "a2d-qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))
            for layer in cast(Any, model.model.layers):
                layer.self_attn.q_norm.weight.data.uniform_(0.5, 2.0)
                layer.self_attn.k_norm.weight.data.uniform_(0.5, 2.0)
            return TransformerDenoiser(model, MASK, range(WORDS), shifted=False)
        return TransformerDenoiser(Qwen2ForCausalLM(Qwen2Config(**SIZES)), MASK, range(WORDS), shifted=True)


def canvas_of(rows: int = 5, whole: int = 12, start: int = 5) -> Canvas:
    ids_BT = torch.randint(0, WORDS, (rows, whole), generator=generator("ids"))
    attend_BT = torch.ones(rows, whole, dtype=torch.bool)
    attend_BT[1, :3] = attend_BT[2, -2:] = False
    return Canvas(ids_BT, attend_BT, start)


def eager(denoiser: TransformerDenoiser, canvas: Canvas) -> tuple[Tensor, ...]:
    """(B, T, T) the model's own attention per layer, mean over heads, by its reference implementation."""
    closed_B11T = ~canvas.attend_BT[:, None, None, :]
    mask = torch.zeros(closed_B11T.shape).masked_fill(closed_B11T, torch.finfo(torch.float32).min)
    denoiser.model.set_attn_implementation("eager")
    try:
        found = denoiser.model.model(
            input_ids=canvas.ids_BT,
            attention_mask=mask.expand(-1, 1, canvas.ids_BT.shape[1], -1),
            position_ids=places(canvas.attend_BT),
            output_attentions=True,
        ).attentions
    finally:
        denoiser.model.set_attn_implementation("sdpa")
    return tuple(layer.mean(1) for layer in found)


def test_attention_is_the_model_s_own(denoiser: TransformerDenoiser):
    canvas, layers = canvas_of(), (-1, 0, 1)
    hidden_BTD, attention_BLLA, state = denoiser.attended(canvas, None, layers)
    assert state is None and torch.equal(hidden_BTD, denoiser.hidden(canvas)[0])
    valid_BL = canvas.attend_BT[:, canvas.start :]
    for number, layer in enumerate(layers):
        own_BLL = eager(denoiser, canvas)[layer][:, canvas.start :, canvas.start :]
        torch.testing.assert_close(attention_BLLA[..., number][valid_BL], own_BLL[valid_BL], rtol=0, atol=1e-5)
    assert bool((attention_BLLA[~valid_BL] == 0).all())
    assert bool((attention_BLLA.transpose(1, 2)[~valid_BL] == 0).all())
    assert float(attention_BLLA[valid_BL].sum(1).max()) < 1  # the prompt has its share


def test_only_the_layers_that_are_asked_for_are_computed_twice(
    denoiser: TransformerDenoiser, monkeypatch: pytest.MonkeyPatch
):
    from components.denoisers import transformer

    seen: list[int] = []
    weights = transformer._weights
    monkeypatch.setattr(
        transformer, "_weights", lambda module, *rest: seen.append(module.layer_idx) or weights(module, *rest)
    )
    denoiser.attended(canvas_of(), None, (-1, 2))
    assert seen == [2]  # both name the last layer
    denoiser.hidden(canvas_of())
    assert seen == [2]


@dataclass(frozen=True)
class Reads:
    """A rule that decodes by confidence and reads more than it uses."""

    needs: Needs
    rule: Quota = Quota("confidence", 2)  # noqa: RUF009 (frozen)

    def score(self, obs: Observation):
        return self.rule.score(obs)

    def distribution(self, obs: Observation):
        return self.rule.distribution(obs)


def jobs() -> Job:
    """Prompts and canvases of several lengths, in blocks of 4."""
    prompts = [torch.arange(5, 5 + n) for n in (1, 4, 7)]
    job = Job.of(prompts, 8, 4, group=3)
    return Job(
        job.prompts,
        job.prompt_R,
        job.uid_R,
        job.member_R,
        torch.where(job.member_R == 1, 4, 8),
        job.block_R,
        job.policy_R,
    )


def by_address(steps: Steps | None) -> Steps:
    assert steps is not None
    return steps.pairs((steps.row_N * 100 + steps.step_N).argsort())


COSTS = [dict(rows=1), dict(rows=4), dict(rows=4, refill=False), dict(workers=2), dict(tokens=16), dict(reuse=False)]


@pytest.mark.parametrize("cost", COSTS)
def test_ids_and_attention_are_a_row_s_own_however_it_is_batched(denoiser: TransformerDenoiser, cost: dict[str, Any]):
    policy = Reads(EVERYTHING | Quota("confidence").needs)
    plain, costly = DecodeOptions(record=True), DecodeOptions(record=True, **cost)
    whole, other = (by_address(rollout(denoiser, policy, jobs(), options).steps) for options in (plain, costly))
    assert torch.equal(whole.row_N, other.row_N) and torch.equal(whole.step_N, other.step_N)
    one, two = whole.observation, other.observation
    assert one.top_ids_BLK is not None and one.attention_BLLA is not None and two.attention_BLLA is not None
    assert one.attention_layers == two.attention_layers == (-1, 0)
    assert two.top_ids_BLK is not None and torch.equal(one.top_ids_BLK, two.top_ids_BLK)
    torch.testing.assert_close(one.attention_BLLA, two.attention_BLLA, rtol=0, atol=1e-6)
    assert bool((one.attention_BLLA.sum((1, 2, 3)) > 0).all())


def test_ids_are_read_where_the_others_are_and_begin_with_the_prediction(denoiser: TransformerDenoiser):
    steps = rollout(denoiser, Reads(EVERYTHING | Quota("confidence").needs), jobs(), DecodeOptions(record=True)).steps
    assert steps is not None
    obs = steps.observation
    assert obs.top_ids_BLK is not None and obs.token_BL is not None
    assert torch.equal(obs.top_ids_BLK[..., 0], obs.token_BL)
    assert bool((obs.top_ids_BLK[~obs.masked_BL] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 2, 7, 45])
def test_ids_are_those_of_a_stable_sort_of_the_whole_distribution(dtype: torch.dtype, top_k: int):
    source = generator("ids of the largest")
    logits_NV = (torch.randn(200, WORDS, generator=source) * 20).to(dtype)
    logits_NV[:50] = logits_NV[:50].round(decimals=-1)  # many ties
    logits_NV[50:60] *= 30  # most probabilities underflow
    logits_NV[60] = 0
    forbidden = torch.tensor([4, 9])
    found = readout.read(lambda x: x, logits_NV, forbidden, Needs(top_k=top_k, top_ids=True), WORDS)
    wide_NV = logits_NV.to(torch.float64).index_fill(-1, forbidden, readout.NEVER)
    want_NK = wide_NV.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    assert torch.equal(found["top_ids"][:, : want_NK.shape[1]], want_NK)
    assert bool((found["top_ids"][:, want_NK.shape[1] :] == -1).all())
    exact_NV = wide_NV.softmax(-1).to(found["top"].dtype)
    torch.testing.assert_close(found["top"][:, : want_NK.shape[1]], exact_NV.gather(1, want_NK), rtol=1e-4, atol=1e-6)
    alone = readout.read(lambda x: x, logits_NV, forbidden, Needs(top_k=top_k), WORDS)
    assert torch.equal(alone["top"], found["top"])


def test_log_odds_of_any_token_are_those_of_the_softmax():
    source = generator("log-odds of")
    logits_NV, token_N = torch.randn(99, WORDS, generator=source) * 4, torch.randint(0, 3, (99,), generator=source)
    found_N = readout.log_odds_of(lambda x: x, logits_NV, torch.tensor([MASK]), token_N, WORDS)
    p_N = logits_NV.double().index_fill(-1, torch.tensor([MASK]), -torch.inf).softmax(-1).gather(1, token_N[:, None])
    torch.testing.assert_close(found_N.double(), torch.logit(p_N.squeeze(1)), rtol=1e-5, atol=1e-5)
    best = readout.read(lambda x: x, logits_NV, torch.tensor([MASK]), Needs(statistics=("log_odds",)), WORDS)
    again_N = readout.log_odds_of(lambda x: x, logits_NV, torch.tensor([MASK]), best["token"], WORDS)
    torch.testing.assert_close(again_N, best["log_odds"], rtol=1e-5, atol=1e-5)


def test_a_denoiser_without_attention_is_refused_with_a_remedy(denoiser: TransformerDenoiser):
    formula = FormulaDenoiser(lambda canvas: torch.zeros(*canvas.ids_BT[:, canvas.start :].shape, 5), 5)
    assert attention_layers(formula) == attention_layers(CachedDenoiser(denoiser, "dual")) == 0
    for blind in (formula, CachedDenoiser(denoiser, "dual")):
        with pytest.raises(SettingsError, match=r"shows 0\. Use"):
            rollout(blind, Reads(Needs(attention=(0,))), Job.of([torch.tensor([1])], 4, 4))
    assert attention_layers(denoiser) == LAYERS
    with pytest.raises(SettingsError, match="shows 3"):
        attended(denoiser, canvas_of(), None, (LAYERS,))


def test_needs_name_attention_once_in_one_order_and_ids_need_a_number():
    assert (Needs(attention=(2, -1)) | Needs(attention=(-1, 0))).attention == (-1, 0, 2)
    assert (Needs(top_k=3) | Needs(top_k=2, top_ids=True)) == Needs(top_k=3, top_ids=True)
    with pytest.raises(ValueError, match="top_k of at least 1"):
        Needs(top_ids=True)
