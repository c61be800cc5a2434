"""docs/metrics.md against the names that are really logged, both ways."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from components.denoisers import embedded
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.heuristics import Threshold
from components.reports import summary
from components.tracking.publish import results
from components.trainers.distill import DistillPlan, imitate
from components.trainers.influence import Callbacks, Fit, Kept, Source, influence
from components.trainers.plan import Objective, Plan
from components.trainers.pretrain import Batch, Schedule, pretrain
from components.trainers.probing import Probing
from components.trainers.reinforce import Method, optimizer_for, reinforce
from tests.doubles import learner
from tests.outputs import result
from tests.toy_domain import KeyFirst

ROOT = Path(__file__).parents[2]


class Names:
    """A report callback that keeps the names it was given; each iteration must log the same ones."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def __call__(self, number: int, metrics: dict[str, float]) -> None:
        self.seen.append(set(metrics))


def documented(section: str) -> set[str]:
    """Names in the first column of a section's table."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE))


def reinforced(task: KeyFirst) -> set[str]:
    names, policy = Names(), learner()
    plan = Plan(iterations=2, prompts=4, group=4, learning_rate=1e-2, seed=0, block_length=2, warmup=1)
    method, optimizer = Method(plan, Objective(signal="dense")), optimizer_for(policy, plan)
    for number, metrics in reinforce(policy, optimizer, task.denoiser(), task.prompts(), method):
        names(number, metrics)
    assert names.seen[0] == names.seen[1]
    return names.seen[0]


def distilled(task: KeyFirst) -> set[str]:
    names = Names()
    imitate(learner(), Threshold(0.9), task.denoiser(), task.prompts(), DistillPlan(1, 4, 8, 1e-3, None, 0), names)
    return names.seen[0]


def probed(task: KeyFirst, folder: Path) -> set[str]:
    names = Names()
    torch.manual_seed(0)
    policy = CoupledPolicy(CoupledShape(top_k=2, width=8, heads=1, mlp_width=8, pair_width=8))
    plans = (Probing(1, 8, 16, 4, None, 0.3, None, 0), Fit(1, 8, 1e-3, 0))
    callbacks = Callbacks(lambda states: None, names)
    influence(policy, Source(Threshold(0.9), task.denoiser(), task.prompts()), plans, callbacks, Kept(folder, "key"))
    return names.seen[0]


def pretrained() -> set[str]:
    names = Names()
    denoiser, encoder = embedded.build("llada", "ab", embedded.Shape(16, 1, 2, 16, 16), 0)
    prompt_BP = torch.stack([encoder.prompt("a")] * 2)
    batch = Batch(
        prompt_BP, torch.ones_like(prompt_BP, dtype=torch.bool), torch.stack([encoder.answer("ab", 2)] * 2), 0.5
    )
    pretrain(denoiser, lambda _: [batch, batch], Schedule(1, 1e-3, 1, 0), names)
    return {re.sub(r"^loss/\d+$", "loss/<number>", name) for name in names.seen[0]}


def validated() -> set[str]:
    """The names that stage train adds; its source holds them as they are."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "components" / "stages").rglob("*.py")]
    return {name for text in sources for name in re.findall(r'"(tune/\w+)"', text)}


def test_every_curve_is_documented_and_every_documented_curve_is_logged(key_first: KeyFirst, tmp_path: Path) -> None:
    logged = [reinforced(key_first), distilled(key_first), probed(key_first, tmp_path), pretrained(), validated()]
    assert all(logged)
    assert set.union(*logged) == documented("Curves")


def test_every_result_is_documented_and_every_documented_result_is_logged(tmp_path: Path) -> None:
    cells = [result("threshold", "0.9", 0.9, 6.5), result("learned", "mode", 0.88, 5.75)]
    summary.write(tmp_path / "result", {"sudoku": cells}, cells)
    assert {name.replace("sudoku", "<task>") for name in results(tmp_path)} == documented("Results")


def test_every_row_says_what_the_metric_is_and_in_which_unit() -> None:
    for section in ("Curves", "Results", "Stage figures"):
        text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|(.*)\|$", text, re.MULTILINE)
        assert documented(section) <= {name for name, *_ in rows}
