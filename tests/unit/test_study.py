"""The cells of infra/study.yaml, and the document that is made of those that are done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from components.core.errors import SettingsError
from components.core.files import write_json
from components.evaluation.results import EvalResult, read_results, write_results
from components.reports import judged, study_bars, study_document, study_figure
from components.reports.study import HEADINGS, Study, read_kept, row, runs
from flows.study import CELLS, GROUPS, KEPT, cells_of
from tests.messages import has_remedy
from tests.outputs import result

ROOT = Path(__file__).parents[2]
TASKS = ("worded_position", "sudoku_many", "sudoku_unique")


def reader(**changed: Any) -> Callable[[str], str]:
    """The repository's files, with some cells of the study in the place of all."""

    def text_of(name: str) -> str:
        text = (ROOT / name).read_text(encoding="utf-8")
        if name == "infra/study.yaml" and changed:
            return yaml.safe_dump(yaml.safe_load(text) | changed)
        return text

    return text_of


def cell(**entry: Any) -> dict[str, Any]:
    return {"a": {"about": "a cell", "kind": "ablation", "groups": ["evaluate"]} | entry}


def test_every_cell_of_the_study_works_and_all_that_is_asked_for_is_there() -> None:
    cells = {one.name: one for one in cells_of(reader())}
    base = cells["seed-0"].settings
    seeds = [c for c in cells.values() if c.kind == "default" and c.settings.pretrain.seed == base.pretrain.seed]
    assert {c.settings.train.seed for c in seeds if "evaluate" in c.groups} == set(range(5))
    others = [c for c in cells.values() if c.kind == "default" and c.settings.pretrain.seed != base.pretrain.seed]
    assert len({c.settings.train.seed for c in others}) >= 2
    for one in cells.values():
        assert set(one.groups) <= set(GROUPS) and one.about and one.stems
        # The rules are swept once: every cell of one dLLM asks for the same, a control for more.
        assert one.settings.data.counts == base.data.counts
        rules = one.settings.sweep.rules if one.kind != "control" else base.sweep.rules
        assert one.settings.sweep.model_copy(update={"rules": rules}) == base.sweep
        assert base.sweep.rules.items() <= one.settings.sweep.rules.items()
    assert {one.settings.policy.kind for one in cells.values()} == {"coupled", "confidence", "feature"}
    assert next(iter(cells)) == "seed-0"


def test_a_dvc_stage_of_its_own_collects_the_cells() -> None:
    """It is no stage of the default pipeline's, which waits for no study; it reads what a cell is made of."""
    (name,) = stages = yaml.safe_load((ROOT / "infra" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stage, default = stages[name], yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert name not in default and (ROOT / "infra" / stage["wdir"]).resolve() == ROOT
    assert stage["cmd"] == "python -m flows.study --report"
    assert {str(KEPT), CELLS, "params.yaml", "profiles", "components", "flows"} == set(stage["deps"])
    assert [file for out in stage["outs"] for file in out] == ["docs/results.md", "docs/results.png"]
    for out in stage["outs"]:  # in Git, and kept until there are new ones
        assert [*out.values()] == [{"cache": False, "persist": True}]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"set": {"train.nothing.seed": 1}}, "train.nothing.seed is no place"),
        ({"set": {"train.seed": -1}}, "cell a: "),
        ({"set": {"train.sed": 1}}, "cell a: "),
        ({"set": {"variants.offsets": {"distilled": []}}}, "leaves out the trained policy"),
        ({"set": {"variants.blocks": [4, 5]}}, "variants.blocks.1=5 does not divide"),
        ({"groups": ["gate"]}, "gate"),
        ({"grups": []}, "grups"),
    ],
)
def test_a_cell_that_cannot_work_is_named(entry: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(named)) as refused:
        cells_of(reader(cells=cell(**entry)))
    assert has_remedy(str(refused.value))


def test_a_cell_takes_whole_sections_and_then_its_own_values() -> None:
    (one,) = cells_of(
        reader(cells=cell(take={"profiles/confidence.yaml": ["policy", "distill", "train"]}, set={"train.seed": 7}))
    )
    assert one.settings.policy.kind == "confidence" and one.settings.train.seed == 7
    assert one.settings.profile == "tiny" and one.stems[0].startswith("evaluate-")


def row_of(family: str, setting: str, accuracy: float, nfe: float, task: str) -> EvalResult:
    order_2P = np.stack([np.full(200, 0.25), np.full(200, -0.5)])
    return replace(result(family, setting, accuracy, nfe), task=task, order_2P=order_2P)


def keep(folder: Path, name: str, gain: float, seed: int = 0, kind: str = "default", domain: str = "many") -> None:
    """A finished cell: rules at .5 @ 2 and .9 @ 8, a policy ``gain`` above them, influence alone on them."""
    for task in TASKS if name != "elsewhere" else ("latin_square",):
        rules = [row_of("threshold", "0.5", 0.5, 2, task), row_of("confidence", "1", 0.9, 8, task)]
        policies = [
            row_of("learned", "mode", 0.6 + gain, 3.5, task),
            row_of("learned", "offset=4", 0.5 + gain, 2, task),
            row_of("learned", "offset=-4", min(1.0, 0.9 + gain), 8, task),
            row_of("influence", "mode", 0.6, 3.5, task),
            row_of("influence", "offset=4", 0.5, 2, task),
        ]
        if name == "seed-0":
            policies.append(row_of("distilled", "mode", 0.7, 4, task))
        blocks = [replace(p, block_length=4, setting="block=4") for p in policies[:1]]
        blocks += [replace(row_of("confidence", "1", 0.95, 3.5, task), block_length=4)]
        write_results(folder / name / "results" / f"evaluate-{task}.jsonl", [*policies, *blocks, *rules])
    about = {"about": f"cell {name}", "kind": kind, "seconds": 60.0, "started": "2026-01-02T03:04:05"}
    write_json(folder / name / "cell.json", about | {"machine": "2 cores"})
    write_json(folder / name / "run.json", {"commit": "abcdef123456"})
    write_json(folder / name / "metrics" / "distill.json", {"parameters": 15000.0})
    write_json(folder / name / "metrics" / "influence.json", {"held_unexplained": 0.4})
    settings = {"pretrain": {"seed": 0}, "train": {"seed": seed}, "domain": {"tasks": {domain: 1}}}
    (folder / name / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    keep(tmp_path, "seed-0", 0.35)
    keep(tmp_path, "seed-1", 0.25, seed=1)
    keep(tmp_path, "small", 0.1, kind="ablation")
    keep(tmp_path, "elsewhere", 0.2)
    return Study([read_kept(tmp_path / name) for name in ("seed-0", "seed-1", "small", "elsewhere")])


def test_seeds_are_one_line_and_its_figures_are_theirs(study: Study) -> None:
    one = runs(study.first, "evaluate-sudoku_many", "learned", "ours")
    assert one is not None and [len(results) for results in one.by_setting.values()] == [2, 2, 2, 2]
    assert one.curve()[1] == pytest.approx([0.9, 0.8, 1.0]) and one.curve(1)[1] == pytest.approx([0.85, 0.75, 1.0])
    figures = dict(zip(HEADINGS, row(one, "mode", 1.0), strict=True))
    assert figures["seeds"] == "2" and figures["NFE"] == "3.50" and figures["TPF"] == "4.57"
    # The rules' front at 3.5: a quarter of the way from .5 to .9, but blocks of 4 are right on .95 there.
    assert figures["rules' front there, %"] == "95.0" and figures["difference"].startswith("−5.0 [")
    start = runs(study.first, "evaluate-sudoku_many", "distilled", "its start")  # which one seed alone judged
    assert start is not None and [r.accuracy for r in start.by_setting["mode"]] == [0.7]
    assert runs(study.first, "ood-queens", "learned", "") is None
    assert figures["AR-ness@1"] == "0.25" and figures["tau"] == "−0.50"


def test_seeds_of_another_domain_are_one_line_too(tmp_path: Path) -> None:
    for name, gain, seed, domain in (("a", 0.3, 0, "one"), ("a-1", 0.2, 1, "one"), ("b", 0.1, 0, "other")):
        keep(tmp_path, name, gain, seed, "domain", domain)
    keep(tmp_path, "seed-0", 0.35)
    study = Study([read_kept(tmp_path / name) for name in ("seed-0", "a", "a-1", "b")])
    found = {one.label: len(one.by_setting["mode"]) for one in study.on("evaluate-sudoku_many")}
    assert (found["cell a"], found["cell a: influence alone"], found["cell b"]) == (2, 2, 1)
    assert "cell a-1" not in found and len(study.domains()) == 2
    ax = Figure().subplots()
    study_figure._panel(ax, study, "evaluate-sudoku_many")  # they are no policies of the papers
    drawn = {str(line.get_label()) for line in ax.get_lines()}
    assert {"reinforced", "influence alone"} < drawn and not any(label.startswith("cell") for label in drawn)
    judged = [bar for bar in study_bars.bars(study) if bar.asked.startswith("sudoku_many, cell a, ")]
    assert len(judged) == 2 and all(bar.verdict.endswith(" of 2") for bar in judged)
    changed = replace(study.cells[2], settings=study.cells[2].settings | {"train": {"seed": 1, "iterations": 9}})
    assert len(Study([*study.cells[:2], changed]).domains()) == 2  # no seed of the first one


def test_rows_over_pair_shifts_stand_beside_the_policy_and_move_no_front(tmp_path: Path) -> None:
    keep(tmp_path, "seed-0", 0.35)
    keep(tmp_path, "pair-rows", 0.35, kind="control")
    path = tmp_path / "pair-rows" / "results" / f"evaluate-{TASKS[0]}.jsonl"
    demask = [row_of("demask", f"{nfe}", accuracy, nfe, TASKS[0]) for accuracy, nfe in ((0.4, 2), (0.99, 8))]
    write_results(path, [*read_results(path), *demask])
    study = Study([read_kept(tmp_path / name) for name in ("seed-0", "pair-rows")])
    text = study_document.write(tmp_path / "results.md", study, [], None, "Run here.").read_text(encoding="utf-8")
    part = text.partition("## Whose shifts, and which rule")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "|" in line]
    first = next(n for n, line in enumerate(lines) if line[0] == TASKS[0])
    rules, learned, demask_row = lines[first : first + 3]
    assert rules[1] == "rules' front" and learned[1] == "learned policy" and demask_row[1].startswith("bounded")
    assert demask_row[2] == "40.0" and demask_row[-1] == "99.0" and learned[-1] == "100.0"
    assert float(rules[-1]) == pytest.approx(95.0)  # blocks of 4, a rule; not the row's 99


def test_a_rule_that_a_control_swept_is_a_rule_for_every_cell_over_its_dllm(tmp_path: Path) -> None:
    keep(tmp_path, "seed-0", 0.35)
    keep(tmp_path, "pair-rows", 0.35, kind="control")
    keep(tmp_path, "other", 0.35, kind="domain", domain="other")
    path = tmp_path / "other" / "params.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(settings | {"pretrain": {"seed": 7}}), encoding="utf-8")
    path = tmp_path / "pair-rows" / "results" / f"evaluate-{TASKS[1]}.jsonl"
    more = [row_of("dapd", "0.1", 0.7, 2, TASKS[1]), row_of("demask", "1", 0.97, 3.5, TASKS[1])]
    write_results(path, [*read_results(path), *more])
    study = Study([read_kept(tmp_path / name) for name in ("seed-0", "pair-rows", "other")])
    found = {cell.name: [r.family for r in cell.results[f"evaluate-{TASKS[1]}"]] for cell in study.cells}
    assert found["seed-0"].count("dapd") == 1 and found["pair-rows"].count("dapd") == 1
    assert found["seed-0"].count("demask") == 0  # no rule: it reads the policy's shifts
    assert found["other"].count("dapd") == 0  # another dLLM
    # Up to 95 % at 3.35 forwards: .7 @ 2 and .97 @ 3.5 make .943 there, .85 and .95 of the policy .94.
    seen = {bar.asked.partition(",")[0]: bar.seen for bar in study_bars.bars(study) if "our own shifts" in bar.asked}
    assert list(seen) == [TASKS[1]] and seen[TASKS[1]].startswith("worst by seed −5; the lowest at NFE 3.35")


def test_a_policy_that_was_trained_in_blocks_is_judged_in_blocks(tmp_path: Path) -> None:
    """By the trained policy's mode: its samples and its start are right on nothing here. The rule has .95 at 3.5."""
    keep(tmp_path, "seed-0", 0.35)  # .95
    keep(tmp_path, "in-blocks", 0.1, kind="blocks")  # .7
    for task in TASKS:
        path = tmp_path / "in-blocks" / "results" / f"evaluate-{task}.jsonl"
        sample = replace(row_of("learned", "sample", 0.0, 3.5, task), block_length=4, choose="sample")
        start = replace(row_of("distilled", "mode", 0.0, 3.5, task), block_length=4)
        write_results(path, [*read_results(path), sample, start])
    study = Study([read_kept(tmp_path / name) for name in ("seed-0", "in-blocks")])
    default, blocks = [bar for bar in study_bars.bars(study) if bar.asked.startswith("semi-autoregressive")]
    assert "default" in default.asked and default.verdict == "held"
    assert "cell in-blocks" in blocks.asked and blocks.verdict == "missed at 3 of 3 settings"
    assert blocks.seen.count("blocks of 4 at NFE 3.50: −25.0") == 3
    text = study_document.write(tmp_path / "results.md", study, [], None, "Run here.").read_text(encoding="utf-8")
    part = text.partition("## Blocks")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:] for line in part.splitlines() if "| 4 |" in line]
    assert [(row[0].strip(), row[5].strip()) for row in rows] == 3 * [("default", "0.0")] + 3 * [
        ("cell in-blocks", "−25.0")
    ]


def test_a_bar_is_held_by_every_seed_or_missed_by_so_much(study: Study) -> None:
    seen = [judged.Seen(0.7, 3.0, 0.8, 2.0, 4.0), judged.Seen(0.55, 2.5, 0.6, 2.0, 4.0)]
    missed = judged.judged("cut", 0.6, seen)
    assert not missed.held and missed.verdict == "missed by 5, 1 of 2" and "NFE 2.50" in missed.seen
    assert judged.judged("cut", 0.5, seen).held
    nothing = judged.judged("cut", 0.5, [judged.NOTHING])
    assert not nothing.held and nothing.verdict.startswith("not decided")


def test_the_bars_of_a_study_by_hand(study: Study) -> None:
    one = runs(study.first, "evaluate-sudoku_many", "learned", "ours")
    assert one is not None
    plain = replace(one, rules=[rule for rule in one.rules if rule.block_length == 16])
    # Seed 0: .85 @ 2, .95 @ 3.5, 1 @ 8; the front: .5 @ 2 to .9 @ 8.
    cut = judged.errors_cut(plain, 0)
    assert cut.worst == pytest.approx(0.7) and cut.low == pytest.approx(2.0) and cut.high == pytest.approx(8.0)
    above = judged.points_above(plain, 1, [2.0, 3.5])
    assert above.worst == pytest.approx(0.25)
    # No rule takes 1.5 forwards: the front is level there. The policy has no curve left of its fastest setting.
    faster = replace(plain, rules=[replace(rule, nfe=rule.nfe + 1) for rule in plain.rules])
    assert judged.points_above(faster, 0, [1.5, 2.0]).worst == pytest.approx(0.35)
    assert judged.points_above(faster, 0, [1.5, 2.0]).low == 2.0
    saved = judged.forwards_saved(plain, 0)  # from .85, its own fastest, to .9, where the rules end
    assert saved.low == pytest.approx(0.85) and saved.high == pytest.approx(0.9)
    assert saved.worst == pytest.approx(1 - 2.75 / 8) and saved.where == pytest.approx(0.9)
    blocks = [bar for bar in study_bars.bars(study) if "blocks" in bar.asked]
    # Level with the rules of the same blocks, .95, in every case.
    assert len(blocks) == 1 and blocks[0].held and "none of 3" in blocks[0].seen


def test_the_document_has_every_part_and_the_figure_is_drawn(study: Study, tmp_path: Path) -> None:
    found = study_bars.bars(study)
    speed_row = {"name": "ours", "parameters": 5, "accuracy": 0.5, "nfe": 2.0, "tokens_per_second": 1000.0}
    speed_row |= {"ratio": 1.0, "low": 0.9, "high": 1.1, "policy": 0.2}
    speed = {"task": "worded_position", "prompts": 9, "repeats": 3, "threads": 1, "rows": [speed_row]}
    path = study_document.write(tmp_path / "results.md", study, found, speed, "Run here.")
    text = path.read_text(encoding="utf-8")
    opening = text.split("\n\n")[1]
    assert len(re.findall(r"[.:] (?=[A-Z])|\.$", opening)) == 3, opening
    for part in ("results.png", "Run here.", "## Blocks", "## Ablations", "## Tokens per second", "## The bars", "AUP"):
        assert part in text
    (ablated,) = [line for line in text.splitlines() if line.startswith("| cell seed-0 |")]
    assert ablated.count("@") == 4  # the three tasks, and the one of cell elsewhere
    assert "cell small" in text and "nan" not in text
    assert all(bar.asked in text for bar in found) and len(found) > 5
    assert study_figure.draw(tmp_path / "results.png", study).stat().st_size > 10_000


@pytest.mark.parametrize("lowest", [0.0, 0.5, 0.95, 0.97])
def test_no_panel_of_the_figure_has_a_tick_above_100_percent(lowest: float) -> None:
    ax = Figure().subplots()
    study_figure.limit(ax, lowest)
    assert len(ax.get_yticks()) > 2 and ax.get_yticks().max() <= 100 < ax.get_ylim()[1]


def test_in_blocks_a_setting_faster_than_any_rule_is_counted_apart(study: Study) -> None:
    (case, results), *_ = study.first[0].results.items()
    own = next(r for r in results if r.setting == "block=4")
    slow = replace(own, accuracy=0.5, accuracy_high=0.6, nfe=4.0)
    results += [slow, replace(slow, nfe=3.0), replace(slow, nfe=3.0, accuracy=0.96, accuracy_high=0.99)]
    (bar,) = [bar for bar in study_bars.bars(study) if bar.asked.startswith("semi-autoregressive")]
    assert (
        bar.seen == f"{case} blocks of 4 at NFE 4.00: −45.0; 1 of 6 are faster than any rule in their blocks, and "
        "not compared"
    )
    assert bar.verdict == "missed at 1 of 6 settings"


@pytest.mark.parametrize(
    ("level", "seen", "verdict"),
    [
        (0.97, "forwards by seed 5.3, 7.1; no rule is ever as accurate, the best one is right on 95 %", "held, 2 of 2"),
        (1.01, "forwards by seed never, never; no rule", "missed, 0 of 2"),
        (0.8, "worst by seed +8; the lowest at accuracy 0.80", "missed by 22, 0 of 1"),
    ],
)
def test_an_accuracy_that_no_rule_has_is_reached_by_the_policy_or_not(
    level: float, seen: str, verdict: str, study: Study
) -> None:
    cells = [cell for cell in study.default[0] if cell.name.startswith("seed-")]
    one = runs(cells, next(iter(cells[0].results)), "learned", "")
    assert one is not None
    bar = study_bars._fewer_forwards("asked", 0.3, one, level)
    assert bar.seen.startswith(seen) and bar.verdict == verdict and bar.held == verdict.startswith("held")
