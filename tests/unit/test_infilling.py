"""Canvases that an example brings partly filled: read, decoded, scored, trained on, exported, shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from components.commands.decode import END, HOLE, decode_one, lines
from components.core.errors import DataError
from components.core.timer import Timer
from components.core.types import Canvas
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.decode.prompts import Prompts
from components.denoisers import Encoder, embedded, load
from components.evaluation.evaluate import Candidate, evaluate
from components.evaluation.evidence import check_result, result_json, result_of
from components.evaluation.results import read_results, write_results
from components.export import Decoding, OnnxPolicy, check_parity, export_policy, random_states
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.rules import heuristic
from components.tasks.example import MASK, Example, Score, matching, read_examples, write_examples
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, collect
from tests.messages import has_remedy
from tests.unit.test_masked_models import write_masked

torch.set_num_threads(1)


@dataclass(frozen=True)
class Gaps:
    """Right where the text is as long as the answer and differs in two places at most."""

    canvas_length: int = 8
    name: str = "gaps"
    alphabet: str = "abcdefgh"

    def sample(self, index: int, seed: int) -> Example:
        raise NotImplementedError

    def score(self, text: str, example: Example) -> Score:
        near = matching(text.replace(" ", ""), example.answer)  # some tokenizers write blanks between tokens
        return Score(float(near >= 0.7), 1.0 if near >= 0.7 else near)


EXAMPLES = [
    Example("gaps", "ab", "abcdefga", canvas=f"ab{MASK}def{MASK}a"),
    Example("gaps", "c", "hgf", canvas=f"h{MASK}f"),
    Example("gaps", "", "aaaaaaaaaaaaa", canvas=f"aaaa{MASK}aaaa{MASK}{MASK}a{MASK}"),
    Example("gaps", "ab", "abcdefgh"),
]
GIVEN = [["a", "b", None, "d", "e", "f", None, "a"], ["h", None, "f"]]


def dllm(which: str, folder: Path) -> tuple[Any, Encoder]:
    if which in ("llada", "dream"):
        return embedded.build(which, "abcdefgh", embedded.Shape(16, 2, 2, 24, 64), seed=1)
    write_masked(folder, which)
    return load(folder)


def learner() -> ConfidencePolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = ConfidencePolicy(Shape(width=16, heads=1, mlp_width=16, bias=-0.5))
        for weight in policy.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    return policy.eval()


@pytest.mark.parametrize("which", ["Bert", "Esm", "llada", "dream"])
def test_what_is_given_stays_and_the_gaps_are_filled_as_by_hand(which: str, tmp_path: Path):
    """One position at a time, the most certain first, by whole sequences of one row each."""
    denoiser, encoder = dllm(which, tmp_path)
    prompts = Prompts.of(Gaps(), EXAMPLES, encoder)
    assert prompts.lengths == [8, 3, 13, 8] and prompts.job(None).masks_R.tolist() == [2, 1, 4, 8]
    job = prompts.job(None, group=2)
    done = rollout(denoiser, heuristic("confidence", 1), job, DecodeOptions(rows=3))
    assert done.nfe_R.tolist() == [2, 2, 1, 1, 4, 4, 8, 8]
    for row, prompt in enumerate(job.prompt_R.tolist()):
        given = prompts.canvases.get(prompt, torch.full((8,), -1))
        ids = torch.cat([prompts.ids[prompt], given.where(given >= 0, denoiser.mask_id)]).unsqueeze(0)
        start = len(prompts.ids[prompt])
        while bool((ids[0, start:] == denoiser.mask_id).any()):
            hidden, _ = denoiser.hidden(Canvas(ids, torch.ones_like(ids).bool(), start), None)
            logits = denoiser.logits(hidden[0, start:]).index_fill(-1, denoiser.forbidden_ids, -torch.inf)
            sure, token = logits.softmax(-1).max(-1)
            place = int(sure.masked_fill(ids[0, start:] != denoiser.mask_id, -1).argmax())
            ids[0, start + place] = token[place]
        assert done.canvas_RL[row, : len(given)].tolist() == ids[0, start:].tolist()
    text, correct, dense = prompts.scores(job, done)
    for row, wanted in ((0, GIVEN[0]), (2, GIVEN[1])):
        for place, letter in enumerate(wanted):
            token = encoder.token(int(done.canvas_RL[row, place]))
            assert letter is None or token == letter
    assert len(text) == len(correct) == len(dense) == 8


@pytest.mark.parametrize("block", [1, 4, 8])
def test_blocks_are_over_the_canvas_and_one_without_a_gap_costs_nothing(block: int, tmp_path: Path):
    denoiser, encoder = dllm("Bert", tmp_path)
    job = Prompts.of(Gaps(), EXAMPLES[:3], encoder).job(block)
    done = rollout(denoiser, heuristic("threshold", 0.0), job, DecodeOptions())
    assert job.canvas_RL is not None
    for row, canvas in enumerate(job.canvas_RL.tolist()):
        masked = [place for place in range(int(job.length_R[row])) if canvas[place] < 0]
        blocks = sorted({place // block for place in masked})
        assert int(done.nfe_R[row]) == len(blocks)
        assert [int(done.order_RL[row, p]) for p in masked] == [blocks.index(p // block) for p in masked]


def test_an_evaluation_measures_against_the_gaps(tmp_path: Path):
    denoiser, encoder = dllm("llada", tmp_path)
    prompts = Prompts.of(Gaps(), EXAMPLES, encoder)
    result = evaluate(denoiser, Candidate("confidence", "1", heuristic("confidence", 1), None), prompts, [0])
    assert result.nfe_P.tolist() == [2, 1, 4, 8] and result.unfinished == 0
    assert (result.block_length, result.masks_P.tolist()) == (8, [2, 1, 4, 8])
    write_results(tmp_path / "results.jsonl", [result])
    (again,) = read_results(tmp_path / "results.jsonl")
    for found in (result, again, result_of(json.loads(json.dumps(result_json(again))), "gaps")):
        check_result(found, 8)
        # One position a step: of M masks the last step is worth 1/M, whatever was given.
        wanted = [c / m for c, m in zip(result.correct_P, (2, 1, 4, 8), strict=True)]
        assert found.utility_P(8, 1.0).tolist() == pytest.approx(wanted)
        with pytest.raises(DataError, match="NFE=3 of prompt 0"):
            check_result(replace(found, nfe_P=found.nfe_P + 1), 8)


def test_a_reward_counts_the_gaps_and_the_same_prompts_are_learned_from(tmp_path: Path):
    denoiser, encoder = dllm("Bert", tmp_path)
    prompts = Prompts.of(Gaps(), EXAMPLES, encoder)
    plan = Plan(iterations=1, prompts=4, group=6, learning_rate=1e-2, seed=0, block_length=None)
    found = collect(learner(), denoiser, prompts, Method(plan, Objective(alpha=2.0)), 0, Timer())
    masks, nfe = found.job.masks_R, found.rollout.nfe_R
    assert sorted(masks.unique().tolist()) == [1, 2, 4, 8] and bool((nfe <= masks).all())
    speed = (masks - nfe + 1) / masks
    torch.testing.assert_close(found.reward_R, found.correct_R * speed**2.0)
    assert bool((found.reward_R > 0).any())


@pytest.mark.e2e
def test_an_exported_policy_fills_the_same_gaps(tmp_path: Path):
    denoiser, encoder = dllm("Esm", tmp_path)
    policy, path = learner(), tmp_path / "policy.onnx"
    export_policy(policy, path, {})
    decoding = Decoding(denoiser, Prompts.of(Gaps(), EXAMPLES, encoder), block_length=None, frontier=2)
    report = check_parity(policy, OnnxPolicy(path), random_states(policy, 20), decoding)
    assert (report.texts, report.equal_texts) == (8, 8)


def test_prompts_of_both_kinds_are_taken_and_joined(tmp_path: Path):
    _, encoder = dllm("llada", tmp_path)
    whole = Prompts.of(Gaps(), EXAMPLES, encoder)
    joined = whole.take([3, 1]) + whole.take([0]) + whole.take([3])
    assert joined.lengths == [8, 3, 8, 8] and sorted(joined.canvases) == [1, 2]
    job = joined.job(None, group=2)
    assert job.masks_R.tolist() == [8, 8, 1, 1, 2, 2, 8, 8]
    assert job.canvas_RL is not None and torch.equal(job.canvas_RL[4, :8], whole.canvases[0])


def test_an_example_keeps_its_canvas_on_file_and_the_canvas_tells_examples_apart(tmp_path: Path):
    write_examples(tmp_path / "rows.jsonl", EXAMPLES)
    assert read_examples(tmp_path / "rows.jsonl") == EXAMPLES
    assert "canvas" not in EXAMPLES[3].to_json()
    one, other = (Example("gaps", "", "", canvas=f"a{MASK}{c}") for c in "bc")
    assert len({one.uid, other.uid, Example("gaps", "", "").uid}) == 3


@pytest.mark.parametrize("canvas", ["", "abc", f"a{MASK}<|user|>", "a[MASK"])
def test_a_canvas_without_a_gap_or_with_a_control_token_is_refused(canvas: str, tmp_path: Path):
    _, encoder = dllm("llada", tmp_path)
    with pytest.raises(DataError) as refused:
        Prompts.of(Gaps(), [Example("gaps", "ab", "", canvas=canvas)], encoder)
    assert has_remedy(str(refused.value))


def test_an_end_may_be_given_and_a_model_s_own_mask_is_a_gap_too(tmp_path: Path):
    _, encoder = dllm("llada", tmp_path)
    found = encoder.canvas(f"a{MASK}<|mask|>b<|endoftext|>", MASK)
    assert found.tolist()[1:3] == [-1, -1] and int(found[-1]) in encoder.end_ids


def test_a_text_that_stops_is_filled_with_the_tokenizer_s_end(tmp_path: Path):
    _, encoder = dllm("llada", tmp_path)
    assert encoder.stop_ids == () and encoder.stopping().stop_ids == (encoder.tokenizer.eos_token_id,)
    both = replace(encoder, end_ids=frozenset({encoder.tokenizer.eos_token_id, 0}))
    assert both.stopping().stop_ids == (encoder.tokenizer.eos_token_id, 0)
    assert Prompts.of(Gaps(), EXAMPLES, both.stopping()).job(4).end_ids == both.stopping().stop_ids


def test_the_terminal_shows_what_is_given_from_the_start(tmp_path: Path):
    opened = dllm("llada", tmp_path)
    chosen = Candidate("confidence", "confidence:1", heuristic("confidence", 1), None)
    shown = decode_one(chosen, opened, Gaps(), EXAMPLES[0], None, False)
    assert shown.canvas(0) == f"ab{HOLE}def{HOLE}a" and shown.nfe == 2
    assert HOLE not in shown.canvas(2) and len(lines([shown])) == 4


def test_control_characters_of_a_vocabulary_do_not_reach_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened = dllm("llada", tmp_path)
    monkeypatch.setattr(Encoder, "token", lambda encoder, token: "\x1b[2J\n\r\u202eé 漢")
    chosen = Candidate("confidence", "confidence:1", heuristic("confidence", 1), None)
    shown = decode_one(chosen, opened, Gaps(), EXAMPLES[0], None, False)
    assert set(shown.tokens) - {END} == {"\\x1b[2J\\n\\r\\u202eé 漢"}
