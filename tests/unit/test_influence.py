"""Probing gives what one forward per commit gives; fitting lowers what is unexplained, and resumes to the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from components.core.errors import DataError
from components.core.types import Canvas
from components.decode.prompts import Prompts
from components.denoisers import TransformerDenoiser, embedded
from components.denoisers.cached import CachedDenoiser
from components.denoisers.loading import Encoder
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.heuristics import Quota
from components.tasks.example import Example
from components.trainers import influence as trainer
from components.trainers import probing
from components.trainers.influence import Callbacks, Fit, Kept, Source, influence
from components.trainers.plan import Plan
from components.trainers.probing import Labels, Probing, collect, cost, stored
from components.trainers.reinforce import optimizer_for
from tests.toy_domain import KeyFirst

torch.set_num_threads(1)

SHAPE = CoupledShape(top_k=4, width=16, heads=2, mlp_width=16, pair_width=16)
PLAN = Probing(
    chunks=2, prompts=6, states=20, probes=8, on_policy_from=None, validation_share=0.3, block_length=4, seed=1
)
FIT = Fit(num_epochs=3, batch=8, learning_rate=1e-2, seed=1)
LENGTHS = (8, 4)


class Letters:
    end_ids: frozenset[int] = frozenset()
    stop_ids: tuple[int, ...] = ()

    def prompt(self, text: str) -> Tensor:
        return torch.tensor([ord(c) - 92 for c in text])


def prompts_of(count: int = 6) -> Prompts:
    """Prompts and canvases of several lengths; nobody scores them."""
    examples = [Example("none", "abcabc"[: 1 + i % 4] + chr(97 + i % 5), "") for i in range(count)]
    ids = [Letters().prompt(x.prompt) for x in examples]
    return Prompts(
        [cast(Any, None)] * count, examples, ids, [LENGTHS[i % 2] for i in range(count)], cast(Encoder, Letters())
    )


@pytest.fixture(scope="module", params=["llada", "dream"])
def denoiser(request: pytest.FixtureRequest):
    return embedded.build(request.param, "abcdefgh", embedded.Shape(16, 2, 2, 24, 64), seed=1)[0]


def policy_of(shape: CoupledShape = SHAPE) -> CoupledPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CoupledPolicy(shape)


def by_hand(denoiser: TransformerDenoiser, prompt: Tensor, canvas_L: Tensor, token_L: Tensor) -> Tensor:
    """(L,) log-odds of the tokens at every position of one canvas, alone, by a float64 softmax."""
    ids_BT = torch.cat([prompt, canvas_L])[None]
    hidden_BTD, _ = denoiser.hidden(Canvas(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), len(prompt)), None)
    logits_LV = denoiser.logits(hidden_BTD[0, len(prompt) :]).double()
    logits_LV[:, denoiser.forbidden_ids] = -torch.inf
    return torch.logit(logits_LV.softmax(-1).gather(1, token_L[:, None]).squeeze(1))


@pytest.mark.parametrize("on_policy_from", [None, 0])
def test_labels_are_those_of_one_probe_after_another(denoiser: TransformerDenoiser, on_policy_from: int | None):
    prompts, plan = prompts_of(), replace(PLAN, on_policy_from=on_policy_from)
    seen: list[tuple[Any, Any, Any]] = []
    real = probing._probe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "_probe", lambda *given: seen.append(given[1:4]) or real(*given))
        labels = collect(policy_of(), Quota("confidence", 2), denoiser, prompts, plan, 0)
    job, steps, ids_SL = seen[0]
    obs, checked = labels.observation, 0
    assert obs.token_BL is not None and obs.log_odds_BL is not None
    assert len(labels) > 10 and bool(obs.masked_BL.any(-1).all())
    for s in range(len(labels)):
        row = int(steps.row_N[s])
        size, prompt = int(job.length_R[row]), job.prompts[int(job.prompt_R[row])]
        canvas_L, token_L = ids_SL[s, :size], obs.token_BL[s, :size]
        assert torch.equal(canvas_L == denoiser.mask_id, obs.masked_BL[s, :size])
        masked_L = obs.masked_BL[s, :size]
        now_L = by_hand(denoiser, prompt, canvas_L, token_L)
        torch.testing.assert_close(obs.log_odds_BL[s, :size][masked_L].double(), now_L[masked_L], rtol=0, atol=1e-4)
        places = [i for i in labels.position_SN[s].tolist() if i >= 0]
        assert sorted(places) == obs.eligible_BL[s].nonzero().squeeze(1).tolist()  # of the block, every one once
        for n, i in enumerate(labels.position_SN[s].tolist()):
            others = [j for j in masked_L.nonzero().squeeze(1).tolist() if j != i]
            assert labels.pairs_SNL[s, n].nonzero().squeeze(1).tolist() == (others if i >= 0 else [])
            if i >= 0:
                after_L = by_hand(denoiser, prompt, canvas_L.index_fill(0, torch.tensor([i]), int(token_L[i])), token_L)
                torch.testing.assert_close(labels.after_SNL[s, n, others].double(), after_L[others], rtol=0, atol=1e-4)
                checked += len(others)
    assert checked > 100


def test_a_cache_is_probed_at_its_refresh_which_is_exact(denoiser: TransformerDenoiser):
    plain, cached = (
        collect(policy_of(), Quota("left_to_right", 2), d, prompts_of(), PLAN, 0)
        for d in (denoiser, CachedDenoiser(denoiser, "dual"))
    )
    first_S = (plain.observation.masked_BL.sum(-1) == plain.observation.length_B).nonzero().squeeze(1)
    assert len(first_S) > 3
    torch.testing.assert_close(plain.after_SNL[first_S], cached.after_SNL[first_S], rtol=0, atol=1e-4)


def test_how_the_visits_are_batched_changes_no_label(denoiser: TransformerDenoiser, monkeypatch: pytest.MonkeyPatch):
    one = collect(policy_of(), Quota("random", 2), denoiser, prompts_of(), PLAN, 1)
    monkeypatch.setattr(probing, "tokens_per_forward", lambda device: 1)
    two = collect(policy_of(), Quota("random", 2), denoiser, prompts_of(), PLAN, 1)
    assert torch.equal(one.position_SN, two.position_SN) and torch.equal(one.held_S, two.held_S)
    torch.testing.assert_close(one.after_SNL, two.after_SNL, rtol=0, atol=1e-5)


class Counting:
    """A denoiser that counts its row-forwards."""

    def __init__(self, inner: TransformerDenoiser) -> None:
        self.inner = inner
        self.__dict__.update({n: v for n, v in vars(inner).items()}, inner=inner, stateless=True, rows=0)

    def start(self, canvas: Canvas):
        return None

    def hidden(self, canvas: Canvas, state: Any = None) -> Any:
        self.rows += len(canvas.ids_BT)
        return self.inner.hidden(canvas, state)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return self.inner.logits(hidden_ND)


@pytest.mark.parametrize(("states", "probes"), [(20, 8), (5, 3)])
def test_cost_is_stated_before_and_kept(denoiser: TransformerDenoiser, states: int, probes: int):
    plan = replace(PLAN, states=states, probes=probes, block_length=None)
    counting = Counting(denoiser)
    for number in range(plan.chunks):
        labels = collect(policy_of(), Quota("confidence", 1), cast(Any, counting), prompts_of(), plan, number)
        assert len(labels) <= states and int((labels.position_SN >= 0).sum(-1).max()) <= probes
    assert 0.4 * cost(prompts_of(), plan) < counting.rows <= cost(prompts_of(), plan)


def test_every_prompt_comes_once_before_any_comes_again():
    plan = replace(PLAN, prompts=4)
    drawn = [i for number in range(5) for i in probing._drawn(10, plan, number)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and drawn[:10] != drawn[10:]


def test_a_prompt_is_held_out_whole_or_not_at_all(denoiser: TransformerDenoiser):
    plan, prompts, rule = replace(PLAN, prompts=1, validation_share=0.5), prompts_of(20), Quota("confidence", 1)
    held = [
        collect(policy_of(), rule, denoiser, prompts, plan, number).held_S.unique().tolist() for number in range(20)
    ]
    assert all(len(one) == 1 for one in held) and 3 < sum(one[0] for one in held) < 17
    assert not collect(policy_of(), rule, denoiser, prompts, replace(PLAN, validation_share=0.0), 0).held_S.any()


def test_states_without_a_pair_are_refused(denoiser: TransformerDenoiser):
    prompts = prompts_of()
    single = Prompts(prompts.tasks, prompts.examples, prompts.ids, [1] * 6, prompts.encoder)
    with pytest.raises(DataError, match="two masks"):
        collect(policy_of(), Quota("confidence", 1), denoiser, single, replace(PLAN, block_length=1), 0)


def test_labels_are_stored_whole_and_collected_anew_for_another_key(denoiser: TransformerDenoiser, tmp_path: Path):
    policy = policy_of(replace(SHAPE, attention=(-1,)))
    made = collect(policy, Quota("confidence", 2), denoiser, prompts_of(), PLAN, 0)
    calls: list[int] = []

    def make() -> Labels:
        calls.append(1)
        return made

    for key in ("a", "a", "b"):
        found = stored(tmp_path / "labels.safetensors", key, make)
        assert found.observation.tensors().keys() == made.observation.tensors().keys()
        assert all(torch.equal(t, made.observation.tensors()[n]) for n, t in found.observation.tensors().items())
        assert found.observation.attention_layers == (-1,) and torch.equal(found.after_SNL, made.after_SNL)
        assert torch.equal(found.position_SN, made.position_SN) and torch.equal(found.held_S, made.held_S)
    assert len(calls) == 2 and [p.name for p in tmp_path.iterdir()] == ["labels.safetensors"]


def run(
    denoiser: TransformerDenoiser, folder: Path, plan: Probing = PLAN, fit: Fit = FIT, stop: int | None = None
) -> tuple[CoupledPolicy, list[dict[str, float]]]:
    """The trained policy and its figures; stop: interrupted in the report of that epoch."""
    policy, figures = policy_of(), list[dict[str, float]]()

    def report(epoch: int, metrics: dict[str, float]) -> None:
        assert epoch == len(figures)
        figures.append(metrics)
        if epoch == stop:
            raise KeyboardInterrupt

    source = Source(Quota("confidence", 2), denoiser, prompts_of())
    influence(policy, source, (plan, fit), Callbacks(lambda states: None, report), Kept(folder, "test"))
    return policy, figures


def test_every_chunk_is_told_when_it_is_probed_and_every_epoch_when_it_is_done(
    denoiser: TransformerDenoiser, tmp_path: Path
):
    plan, told = replace(PLAN, on_policy_from=1), list[tuple[str, int]]()
    files: list[int] = []

    def chunk(states: int) -> None:
        told.append(("chunk", states))
        files.append(len(list(tmp_path.glob("labels-*.safetensors"))))

    callbacks = Callbacks(chunk, lambda epoch, metrics: told.append(("epoch", epoch)))
    source = Source(Quota("confidence", 2), denoiser, prompts_of())
    influence(policy_of(), source, (plan, FIT), callbacks, Kept(tmp_path, "test"))
    epochs = list(range(2 * FIT.num_epochs))
    kinds = ["chunk", *["epoch"] * FIT.num_epochs, *["chunk"] * (PLAN.chunks - 1), *["epoch"] * FIT.num_epochs]
    assert [kind for kind, _ in told] == kinds
    assert [number for kind, number in told if kind == "epoch"] == epochs
    assert files == list(range(1, PLAN.chunks + 1))
    assert all(0 < states <= PLAN.states for kind, states in told if kind == "chunk")


@pytest.mark.e2e
@pytest.mark.parametrize("stop", [0, 2, 4])
def test_killed_and_started_again_it_ends_at_the_same_bits(denoiser: TransformerDenoiser, tmp_path: Path, stop: int):
    plan = replace(PLAN, on_policy_from=1)
    whole, figures = run(denoiser, tmp_path / "whole", plan)
    again, same = run(denoiser, tmp_path / "again", plan)
    assert figures == same and len(figures) == 2 * FIT.num_epochs
    with pytest.raises(KeyboardInterrupt):
        run(denoiser, tmp_path / "killed", plan, stop=stop)
    resumed, told = run(denoiser, tmp_path / "killed", plan)
    assert told == figures
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and torch.equal(value, resumed.state_dict()[name]), name


def spoiled(path: Path) -> bytes:
    """The file with NaN in every tensor of numbers."""
    with safe_open(path, framework="pt") as file:
        tensors, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    bad = {name: t * torch.nan if t.is_floating_point() else t for name, t in tensors.items()}
    return save(bad, said)


DAMAGES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "cut in the head": lambda path: path.read_bytes()[:50],
    "cut in the middle": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "zeros": lambda path: bytes(path.stat().st_size),
    "other names": lambda path: path.read_bytes().replace(b"_SN", b"_SM").replace(b"avg_sq", b"avg_sz"),
    "not a number": spoiled,
}


@pytest.mark.e2e
@pytest.mark.parametrize("file", ["labels-0001.safetensors", "fit-0.safetensors"])
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_put_aside_and_made_anew(
    denoiser: TransformerDenoiser, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, what: str
) -> None:
    if denoiser.model.config.model_type != "llama":
        return
    whole, figures = run(denoiser, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(denoiser, tmp_path / "killed", stop=1)
    path = tmp_path / "killed" / file
    path.write_bytes(DAMAGES[what](path))
    again, told = run(denoiser, tmp_path / "killed")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"It is put aside as {path}.unreadable" in said
    assert told == figures
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_another_seed_gives_other_bits_and_another_plan_does_not_go_on_from_an_old_fit(
    denoiser: TransformerDenoiser, tmp_path: Path
):
    one, _ = run(denoiser, tmp_path)
    two, figures = run(denoiser, tmp_path, fit=replace(FIT, num_epochs=1))
    assert len(figures) == 1
    assert not torch.equal(one.shifts.pairs.out.weight, two.shifts.pairs.out.weight)
    three, _ = run(denoiser, tmp_path, plan=replace(PLAN, seed=2))
    assert not torch.equal(one.shifts.pairs.out.weight, three.shifts.pairs.out.weight)


@pytest.mark.parametrize("held", [0.0, 1.0])
def test_chunks_without_a_state_that_is_held_out_or_trained_on_are_left_out(
    denoiser: TransformerDenoiser, tmp_path: Path, held: float
) -> None:
    policy, figures = run(denoiser, tmp_path, replace(PLAN, validation_share=held))
    assert math.isnan(figures[-1]["influence/held_unexplained"]) == (held == 0.0)
    assert bool(policy.shifts.pairs.out.weight.any()) == (held == 0.0)


def test_only_the_shifts_are_trained(denoiser: TransformerDenoiser, tmp_path: Path):
    policy, _ = run(denoiser, tmp_path)
    still = policy_of().state_dict()
    for name in ("bias.weight", "bias.bias", "mix.weight", "mix.bias", "tau", "cost", "log_kappa"):
        assert torch.equal(policy.state_dict()[name], still[name])


def test_without_shifts_all_is_unexplained_and_with_the_true_ones_nothing(
    denoiser: TransformerDenoiser, monkeypatch: pytest.MonkeyPatch
):
    labels = collect(
        policy_of(), Quota("confidence", 1), denoiser, prompts_of(), replace(PLAN, validation_share=1.0), 0
    )
    policy = policy_of()
    assert trainer.unexplained(policy, [labels], 8) == pytest.approx(1.0)
    obs = labels.observation
    assert obs.log_odds_BL is not None
    true_SLL = torch.zeros(*obs.masked_BL.shape, obs.masked_BL.shape[1])
    for s, n, i in [(s, n, int(i)) for s, row in enumerate(labels.position_SN) for n, i in enumerate(row) if i >= 0]:
        true_SLL[s, i] = labels.after_SNL[s, n] - obs.log_odds_BL[s]
    monkeypatch.setattr(policy.shifts, "forward", lambda seen: true_SLL)
    assert trainer.unexplained(policy, [labels], 1000) == pytest.approx(0.0, abs=1e-4)


def test_only_probing_trains_the_shifts_and_the_decisions_start_from_their_reader(
    key_first: KeyFirst, tmp_path: Path
) -> None:
    policy = policy_of()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    plan = replace(PLAN, chunks=1, prompts=14, on_policy_from=None)
    source = Source(Quota("random", 1), key_first.denoiser(), key_first.prompts(14))
    fit = Fit(num_epochs=2, batch=32, learning_rate=1e-2, seed=0)
    callbacks = Callbacks(lambda states: None, lambda epoch, metrics: None)
    influence(policy, source, (plan, fit), callbacks, Kept(tmp_path, "k"))
    after = policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in after if name.startswith("shifts.pairs"))
    read = {name for name in after if name.startswith("reader.")}
    assert read and all(torch.equal(after[name], after[f"shifts.{name}"]) for name in read)
    assert all(torch.equal(before[name], after[name]) for name in ("bias.weight", "mix.weight", "tau", "cost"))

    trained = {
        id(p) for group in optimizer_for(policy, Plan(1, 1, 2, 1e-3, 0, None)).param_groups for p in group["params"]
    }
    shifts = {id(p) for p in policy.shifts.parameters()}
    assert trained and trained == {id(p) for p in policy.parameters()} - shifts


def test_what_is_unexplained_falls_on_prompts_that_were_never_trained_on(key_first: KeyFirst, tmp_path: Path):
    """The key decides every other position: a probe of it moves all of them, and nothing else moves anything."""
    policy, figures = policy_of(), []
    plan = Probing(
        chunks=2,
        prompts=56,
        states=200,
        probes=4,
        on_policy_from=None,
        validation_share=0.25,
        block_length=None,
        seed=0,
    )
    source = Source(Quota("random", 1), key_first.denoiser(), key_first.prompts(14))
    plans = (plan, Fit(num_epochs=30, batch=32, learning_rate=1e-2, seed=0))
    callbacks = Callbacks(lambda states: None, lambda epoch, m: figures.append(m))
    influence(policy, source, plans, callbacks, Kept(tmp_path, "key first"))
    assert figures[-1]["influence/loss"] < figures[0]["influence/loss"]
    assert figures[-1]["influence/held_unexplained"] < 0.1
    assert figures[-1]["influence/unexplained"] < figures[0]["influence/unexplained"]
