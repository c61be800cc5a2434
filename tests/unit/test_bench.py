"""`unmask bench` on a random dLLM of a few positions: what it says is complete, adds up, and both loops decide alike.

Nothing here is timed against a bound; that is for tests/benchmarks, by hand.
"""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from components import cli
from components.bench import policy_step, single, tables
from components.bench.decoding import SECTIONS, Comparison, Side
from components.bench.measure import Timed, in_turn, ratios, timed
from components.bench.models import random_model, random_prompts
from components.bench.training import PARTS
from components.commands import bench, throughput
from components.commands.resolve import active_profile
from components.core.types import Observation
from components.maths.distributions import ActionDistribution
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy, CoupledShape
from tests.registry import new_store

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
WORDS = ["--vocabulary=40", "--dtype=float64", "--count=4", "--rows=3", "--repeats=1", "--json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A folder with settings and an empty store."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copy(ROOT / "params.yaml", folder)
    new_store(empty_store, folder)
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    """What the command prints to stdout: JSON alone. Exports take seconds; the policy stands in for its own."""
    small = ConfidencePolicy(Shape(width=8, heads=2, mlp_width=8)).eval()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.chdir(place)
        patch.setattr(bench, "fresh_policies", lambda settings, width: {"profile's": small})
        patch.setattr(policy_step, "SIZES", ((1, 4), (2, 3)))
        patch.setattr(single, "CASES", (single.Single(40, 2, True, 6), single.Single(5_000, None, False, 6)))
        patch.setattr(policy_step, "export_policy", lambda *_: None)
        patch.setattr(policy_step, "OnnxPolicy", lambda *_, **__: small)
        patch.setattr(sys, "argv", ["unmask", "bench", "--random=6", *WORDS])
        with (place / "bench.json").open("w") as out:
            patch.setattr(sys, "stdout", out)
            cli.main()
    assert not ended.value.code
    return json.loads((place / "bench.json").read_text())


def test_both_loops_decide_alike_and_their_shares_sum_to_one(found: dict[str, Any]) -> None:
    names = [row["name"] for row in found["decoding"]]
    assert len(set(names)) == len(names) and {"threshold:0.9", "entropy_bound:0.3", "confidence:1"} < set(names)
    for row in found["decoding"]:
        assert row["same"] == 1.0 and row["rows"] == 4 and row["length"] == 6
        for side in (row["engine"], row["reference"]):
            assert tuple(side["shares"]) == SECTIONS and min(side["shares"].values()) >= 0
            assert sum(side["shares"].values()) == pytest.approx(1)
            assert side["tokens_per_second"] > 0 and side["useful"] <= 1
        assert row["engine"]["useful"] == 1 and row["engine"]["forwards"] <= row["reference"]["forwards"]
    one_by_one = next(row for row in found["decoding"] if row["name"] == "confidence:1")
    assert one_by_one["nfe"] == one_by_one["nfe_longest"] == 6 and one_by_one["engine"]["forwards"] == 4 * 6


def test_at_80_columns_no_name_and_no_number_is_cut(found: dict[str, Any]) -> None:
    def compared(row: dict[str, Any]) -> Comparison:
        sides: dict[str, Any] = {side: Side(**row[side]) for side in ("engine", "reference")}
        return Comparison(**row | sides)

    name, *numbers = ("models:/unmasking-policy-tiny@champion", 128.25, 1000)
    row = found["decoding"][0] | dict(zip(("name", "nfe", "nfe_longest"), (name, *numbers), strict=True))
    decoded = [compared(row), *map(compared, found["decoding"])]
    made = [tables.decoding(decoded), tables.rows(decoded), tables.shares(decoded), tables.single(found["single"])]
    made += [tables.policy_step(found["policy_step"]), tables.machine(found["machine"])]
    made.append(tables.on_paper(throughput.IN_SHORT, map(throughput.cells_in_short, throughput.on_paper())))
    for table in made:
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        said = console.export_text()
        assert "\N{HORIZONTAL ELLIPSIS}" not in said and max(map(len, said.splitlines())) <= 80
        for column in table.columns:
            assert all(word in said for cell in (column.header, *column.cells) for word in str(cell).split()), said


def test_a_canvas_alone_is_decoded_as_a_public_sampler_does(found: dict[str, Any]) -> None:
    quota, threshold = found["single"]
    assert quota["name"] == "confidence:2, 40 tokens, sharp logits" and quota["nfe"] == 3
    assert threshold["name"] == "threshold:0.9, 5,000 tokens, plain logits" and 1 <= threshold["nfe"] <= 6
    for row in found["single"]:
        assert row["same"] == 1.0 and row["engine_seconds"] > 0 and row["public_seconds"] > 0


def test_what_is_left_of_the_time_is_shared_by_what_is_left_to_measure() -> None:
    said: list[str] = []
    clock = bench._Clock(30.0, 3, said.append)
    first, second = clock.next("one"), clock.next("other")
    assert 9.0 < first <= 10.0 and 14.0 < second <= 15.0
    assert said[0].startswith("3 measurements in about 30 s") and said[1].startswith("1/3, ") and "other" in said[2]
    assert bench._Clock(0.0, 1, said.append).next("late") == 0.0
    work = lambda: time.sleep(0.02)  # noqa: E731
    for seconds, counted in ((0.0, 1), (0.5, 4), (None, 4)):
        assert len(in_turn([work], 4, torch.device("cpu"), seconds)[0]) == counted


@pytest.mark.parametrize(
    ("seconds", "tried"), [(0.0, [(8, 1)]), (0.5, [(8, 1), (32, 1)]), (99.0, [(8, 1), (32, 1), (40, 3)])]
)
def test_a_case_takes_fewer_prompts_where_the_seconds_do_not_reach(
    seconds: float, tried: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a pair on all prompts takes a minute, and there are ten cases."""
    clock, runs = [0.0], []

    def compare(denoiser: Any, job: Any, case: Any, repeats: int, share: float) -> int:
        clock[0] += 0.01 * len(job)
        runs.append((len(job), repeats))
        return len(job)

    monkeypatch.setattr("components.bench.decoding.compare", compare)
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])
    denoiser, encoder, task = random_model(6, vocabulary=40)
    case: Any = None
    assert bench._decoding(denoiser, random_prompts(task, encoder, 40), None, case, 3, seconds) == tried[-1][0]
    assert runs == tried


def test_a_training_iteration_is_told_in_its_parts(found: dict[str, Any]) -> None:
    cost = found["training"]
    assert tuple(cost["shares"]) == PARTS and sum(cost["shares"].values()) == pytest.approx(1)
    assert 0 < cost["live"] <= cost["pairs"] <= 6 * cost["rows"]


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.py")))
def test_a_benchmark_that_is_run_by_hand_can_be_imported(script: str) -> None:
    assert callable(importlib.import_module(f"tests.benchmarks.{script}").main)


def test_the_policy_s_step_is_told_by_size(found: dict[str, Any]) -> None:
    assert [(row["policy"], row["rows"], row["length"]) for row in found["policy_step"]] == [
        ("profile's", 1, 4),
        ("profile's", 2, 3),
    ]
    assert all(row["torch_ms"] > 0 and row["onnx_ms"] > 0 for row in found["policy_step"])


def test_an_8b_dllm_is_told_by_arithmetic(found: dict[str, Any]) -> None:
    assert [(row["policy"], row["rows"]) for row in found["on_paper"]] == [
        (name, rows) for rows in (1, 64) for name in ("threshold:0.9", "paper A", "coupled")
    ]
    assert all(100 < row["tokens_per_second"] < 200 for row in found["on_paper"])


def test_a_coupled_policy_s_step_is_its_whole_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score alone would leave out the pairs and the greedy loop."""
    shape = CoupledShape(top_k=3, width=8, heads=2, mlp_width=8, pair_width=8)
    policy, asked = CoupledPolicy(shape).eval(), list[str]()

    class Watched:
        def distribution(self, obs: Observation) -> ActionDistribution:
            asked.append("distribution")
            return policy.distribution(obs)

    monkeypatch.setattr(policy_step, "export_policy", lambda *_: None)
    monkeypatch.setattr(policy_step, "OnnxPolicy", lambda *_, **__: Watched())
    (row,) = policy_step.policy_step(policy, ((2, 6),), repeats=1, inner=2)
    assert row["torch_ms"] > 0 and len(asked) >= 2


def test_ratios_are_of_pairs() -> None:
    ours, theirs = ([Timed(s, None) for s in seconds] for seconds in ((1.0, 2.0, 4.0), (3.0, 2.0, 8.0)))
    assert ratios(ours, theirs) == (2.0, 1.0, 3.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_the_peak_is_of_what_was_held_at_once_and_starts_anew() -> None:
    def work(pieces: int) -> None:
        [torch.zeros(2**23).add_(1) for _ in range(pieces)]  # 32 MiB each, all dropped at the end

    for pieces in (3, 1):
        peak = timed(lambda pieces=pieces: work(pieces), torch.device("cpu")).peak
        assert peak is not None and abs(peak / 2**25 - pieces) < 0.5


@pytest.mark.parametrize("vocabulary", [12, 60_000])
def test_a_random_dllm_knows_what_its_task_is_written_in(vocabulary: int) -> None:
    denoiser, encoder, task = random_model(8, 16, 1, vocabulary)
    prompts = random_prompts(task, encoder, 64)
    assert denoiser.vocabulary == vocabulary == len(encoder.tokenizer) and denoiser.forbidden_ids.tolist() == [0]
    assert len({len(ids) for ids in prompts.ids}) > 1
    for ids, example in zip(prompts.ids, prompts.examples, strict=True):
        assert encoder.text(ids[1:-1]) == example.prompt and int(ids.max()) < vocabulary
    scores = {task.score(str(i), prompts.examples[0]).correct for i in range(64)}
    assert scores == {0.0, 1.0}


def test_untrained_policies_are_the_same_ones_each_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    _, settings = active_profile()
    before = torch.get_rng_state()
    one, other = (bench.fresh_policies(settings, 16) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("profile's", "paper's", "coupled"):
        theirs = other[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in one[name].state_dict().items())
