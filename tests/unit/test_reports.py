"""Laws of the reports: nothing that was measured is lost, nothing is made up, and a page needs nobody but itself."""

from __future__ import annotations

import ast
import csv
import importlib
import io
import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from components.core.errors import DataError
from components.core.files import write_text
from components.evaluation.results import EvalResult
from components.maths.pareto import front_at, upper_hull
from components.policies.rules import POLICIES, RULES
from components.reports import boards, card, fronts, learning, order_page, pareto, picture, table
from tests.outputs import read_table

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = {
    "random": ["1", "2", "4"],
    "left_to_right": ["1", "2", "4"],
    "confidence": ["1", "2", "4"],
    "margin": ["1", "2"],
    "entropy": ["1", "2"],
    "threshold": ["0.5", "0.6", "0.7", "0.8", "0.9", "0.95"],
    "factor": ["0.4", "0.6", "0.8", "1.0"],
    "entropy_bound": ["0.02", "0.05", "0.1", "0.3", "0.6", "1.0"],
}
SKILL = {"random": 0.5, "left_to_right": 0.6, "threshold": 1.0, "factor": 1.12, "entropy_bound": 1.25}


TASKS: tuple[tuple[str, int, float], ...] = (("sudoku_many", 16, 1.0), ("sudoku_order", 36, 0.7))


def synthetic(tasks: tuple[tuple[str, int, float], ...] = TASKS, seed: int = 0) -> list[EvalResult]:
    """Cells that look like an evaluation: accuracy saturates with NFE, rules differ in how fast, policies are ahead."""
    rng = np.random.default_rng(seed)
    cells = []
    for task, length, ease in tasks:
        for block in (length // 4, length):
            for family, settings in SWEEPS.items():
                for place, setting in enumerate(settings):
                    parallel = family in ("threshold", "factor", "entropy_bound")
                    share = 0.2 + 0.4 * place / (len(settings) - 1) if parallel else 1 / int(setting)
                    share = max(share, 0.22) if block < length else share
                    nfe = length * share + rng.normal(0, 0.05) * parallel
                    skill = SKILL.get(family, 0.9) * ease * (1.0 if block == length else 0.93)
                    cells.append(make_cell(task, family, setting, block, nfe, length, skill))
        for family, share, skill in (("distilled", 0.36, 1.28), ("learned", 0.33, 1.8)):
            cells.append(make_cell(task, family, "", length, length * share, length, skill * ease))
    return cells


def make_cell(
    task: str,
    family: str,
    setting: str,
    block: int,
    nfe: float,
    length: int,
    skill: float,
    prompts: int = 512,
    choose: str = "mode",
):
    accuracy = 1 - math.exp(-((3.2 * skill * nfe / length) ** 2))
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / prompts)
    return EvalResult(
        task=task,
        denoiser="llada",
        split="test",
        family=family,
        setting=setting,
        block_length=block,
        choose=choose,
        prompts=prompts,
        seeds=3,
        accuracy=accuracy,
        accuracy_low=max(0.0, accuracy - half),
        accuracy_high=min(1.0, accuracy + half),
        dense=min(1.0, accuracy + 0.1),
        nfe=nfe,
        nfe_low=nfe - 0.1,
        nfe_high=nfe + 0.1,
        tokens_per_second=900.0,
        unfinished=0.0,
    )


def synthetic_decodes(seed: int = 0, prompts: int = 12) -> list[dict[str, Any]]:
    """Decodes of a board, a larger board and a line; the learned policy needs the fewest forwards."""
    rng = np.random.default_rng(seed)
    rules = (("confidence", "1", 1.0), ("entropy_bound", "0.1", 0.5), ("distilled", "", 0.5), ("learned", "", 0.32))
    decodes = []
    for task, length in (("sudoku_many", 16), ("sudoku_order", 36), ("arithmetic", 9)):
        for number in range(prompts):
            size = math.isqrt(length)
            answer = [str((c + r * 2 + number) % size + 1) for r in range(size) for c in range(size)]
            grid = "".join(d if rng.random() < 0.25 else "." for d in answer)
            tokens = answer if length != 9 else [*"12 + 7 =", " done"]
            for family, setting, share in rules:
                steps = max(2, round(length * share * rng.uniform(0.8, 1.2))) if share < 1 else length
                order = rng.permutation(np.resize(np.arange(steps), length))
                line: dict[str, Any] = {
                    "task": task,
                    "family": family,
                    "setting": setting,
                    "prompt": f"<{number}> see https://example.org/?src=a&b\nM{grid}",
                    "text": " ".join(tokens),
                    "gold": " ".join(tokens),
                    "correct": float(rng.random() < 0.8),
                    "nfe": float(steps),
                    "canvas_length": length,
                    "order": order.tolist(),
                    "tokens": tokens,
                }
                if family == "learned" and length != 9:
                    line["view"] = synthetic_view(rng, order)
                decodes.append(line)
    return decodes


def synthetic_view(rng: np.random.Generator, order: np.ndarray) -> dict[str, Any]:
    """A coupled policy's first step that fits the order."""
    length = len(order)
    shift = np.round(rng.normal(-0.5, 2.0, (length, length)) * (1 - np.eye(length)), 2)
    alone = np.where(order == 0, 3.0, np.round(rng.normal(0.5, 1.0, length), 2))
    return {"alone": alone.tolist(), "taken": np.flatnonzero(order == 0).tolist(), "shift": shift.tolist()}


def synthetic_rounds(rounds: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    names = {
        "reward/mean": 0.6,
        "reward/correct": 0.8,
        "decode/nfe": 7.0,
        "policy/entropy": 0.5,
        "policy/gradient_norm": 1.0,
    }
    return [{"step": s, **{k: v + rng.normal(0, 0.05) for k, v in names.items()}} for s in range(rounds)]


FACTS = card.Facts(
    "unmasking-policy-tiny",
    ("sudoku_many",),
    "outputs/tiny/pretrain/llada",
    'M.2..3.."1......',
    16,
    ("log_odds", "entropy", "margin"),
    84_123,
)
RUN = {
    "stage": "train",
    "profile": "tiny",
    "settings": {"train": {"alpha": 1.0, "lr": 5e-4}},
    "commit": "0123abc",
    "dirty": True,
    "seconds": 301.5,
    "versions": {"torch": "2.13.0"},
    "mlflow_run_id": None,
}


# ---- the table that comes in


def write_cells(path: Path, cells: list[EvalResult]):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(vars(cells[0])))
        writer.writeheader()
        writer.writerows(vars(cell) for cell in cells)
    return path


def read_csv(path: Path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_cells_survive_the_file(tmp_path: Path):
    cells = synthetic()
    assert read_table(write_cells(tmp_path / "test.csv", cells)) == cells


def test_the_mixture_named_is_the_mixture_meant():
    for group in fronts.groups(synthetic()).values():
        for at in (1.0, 3.3, 5.28, 8.0, 16.0, 99.0):
            used = fronts.mixture_at(group, at)
            value = np.interp(at, [c.nfe for c in used], [c.accuracy for c in used])
            assert value == pytest.approx(fronts.envelope(group, at))
            assert not any(cell.is_policy for cell in used)


# ---- Pareto


def test_pareto_csv_holds_every_cell_and_every_corner(tmp_path: Path):
    cells = synthetic()
    rows = read_csv(pareto.write_csv(tmp_path / "pareto.csv", cells))
    kept = [tuple(str(getattr(c, k)) for k in pareto.COLUMNS if k != "kind") for c in cells]
    found = [tuple(row[k] for k in pareto.COLUMNS if k != "kind") for row in rows if row["kind"] == "cell"]
    assert Counter(kept) == Counter(found)
    for (task, _, _), group in fronts.groups(cells).items():
        heuristics = [c for c in group if not c.is_policy]
        nfe, accuracy = upper_hull([c.nfe for c in heuristics], [c.accuracy for c in heuristics])
        hull = [row for row in rows if row["kind"] == "hull" and row["task"] == task]
        assert [float(row["nfe"]) for row in hull] == nfe.tolist()
        assert [float(row["accuracy"]) for row in hull] == accuracy.tolist()


def test_the_gap_in_the_figure_is_the_difference_in_the_table():
    for group in fronts.groups(synthetic()).values():
        ax = Figure().subplots()
        pareto.panel(ax, group)
        best = fronts.headline(group)
        (result,) = [r for r in table.results(group) if r.cell == best]
        assert ax.texts[0].get_text() == table.points(result.difference)


def test_every_cell_within_the_axes_is_a_mark_of_the_panel_and_every_policy_is_within():
    (group,) = fronts.groups(synthetic(tasks=(("sudoku_many", 16, 1.0),))).values()
    ax, shown = Figure().subplots(), pareto.span(group)
    pareto.panel(ax, group)
    drawn = {(round(x, 6), round(y, 6)) for line in ax.lines for x, y in np.asarray(line.get_xydata()).tolist()}
    inside = [c for c in group if shown.has(c)]
    assert all((round(c.nfe, 6), round(100 * c.accuracy, 6)) in drawn for c in inside)
    assert {c.family for c in group if c.is_policy} == {c.family for c in inside if c.is_policy}


@pytest.mark.e2e
def test_pictures_are_pictures(tmp_path: Path):
    cells, decodes = synthetic(), synthetic_decodes()
    many = [cell for cell in cells if cell.task == "sudoku_many"]
    for path in (
        pareto.draw(tmp_path / "pareto.png", cells),
        pareto.draw_all(tmp_path / "pareto-all.png", cells),
        pareto.draw(tmp_path / "one.png", many),
        learning.draw(tmp_path / "learning.png", synthetic_rounds()),
        picture.draw(tmp_path / "picture.png", decodes, many),
    ):
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB"))
        colours = len(np.unique(pixels @ np.array([65536, 256, 1])))
        ink = (pixels < 250).any(-1)
        assert colours > 50 and 0.02 < ink.mean() < 0.9, (path.name, colours, ink.mean())


# ---- learning curve


def test_learning_csv_holds_every_round_and_quantity(tmp_path: Path):
    rounds = synthetic_rounds()
    del rounds[3]["policy/entropy"]
    rows = read_csv(learning.write_csv(tmp_path / "learning.csv", rounds))
    assert list(rows[0]) == ["step", *(name for name in learning.PANELS if name != "policy/kl")]
    assert [row["reward/mean"] for row in rows] == [str(r["reward/mean"]) for r in rounds]
    assert rows[3]["policy/entropy"] == ""


def test_a_resumed_and_killed_run_reads_as_one(tmp_path: Path):
    lines = [{"step": 1, "reward/mean": 0.1}, {"step": 2, "reward/mean": 0.2}, {"step": 2, "reward/mean": 0.3}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    assert learning.read_iterations(path) == [lines[0], lines[2]]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "rew', encoding="utf-8")
    with pytest.raises(DataError, match="cut off in line 4"):
        learning.read_iterations(path)
    path.write_text('{"torn\n' + json.dumps(lines[0]) + "\n")
    with pytest.raises(DataError, match="line 1"):
        learning.read_iterations(path)


def test_smoothing_keeps_constants_lines_inside_and_bounds():
    assert learning.smooth([2.0] * 9, 5).tolist() == pytest.approx([2.0] * 9)
    rising = learning.smooth(np.arange(20.0), 5)
    np.testing.assert_allclose(rising[2:-2], np.arange(2.0, 18.0))
    noisy = np.random.default_rng(0).random(50)
    smooth = learning.smooth(noisy, 9)
    assert noisy.min() <= smooth.min() and smooth.max() <= noisy.max() and smooth.std() < noisy.std()


def test_a_curve_without_quantities_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="none of"):
        learning.draw(tmp_path / "learning.png", [{"step": 0, "reward/mean": None}])


# ---- decoding order


class Page(HTMLParser):
    """Boards as the browser gets them: per figure its caption and (step, token) cells; and every attribute."""

    def __init__(self, text: str):
        super().__init__()
        self.boards, self.attributes, self.tags, self.where = [], [], Counter(), None
        self.links = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags[tag] += 1
        self.attributes += attrs
        given = dict(attrs)
        if tag == "figure" and "class" in given:
            self.inside = True
            self.boards.append({"family": given["class"], "steps": [], "tokens": [], "numbers": [], "clues": 0})
        self.links += [given["href"]] if "href" in given else []
        if "data-step" in given:
            self.boards[-1]["steps"].append(int(given["data-step"] or ""))
            self.boards[-1]["clues"] += given.get("class") == "clue"
        self.where = tag

    def handle_endtag(self, tag: str):
        self.inside = self.inside and tag != "figure"

    def handle_data(self, data: str):
        if self.where in ("b", "sub") and self.inside:
            self.boards[-1]["tokens" if self.where == "b" else "numbers"].append(data)
        self.where = None


def test_page_shows_every_position_with_its_step(tmp_path: Path):
    decodes = synthetic_decodes(prompts=3)
    text = order_page.write(tmp_path / "order.html", decodes, plain=99).read_text()
    page = Page(text)
    wanted = Counter((d["family"], *(int(s) + 1 for s in d["order"])) for d in decodes)
    assert Counter((b["family"], *b["steps"]) for b in page.boards) == wanted
    assert all(board["numbers"] == [str(step) for step in board["steps"]] for board in page.boards)
    tokens = Counter(tuple(boards.glyph(t) for t in d["tokens"]) for d in decodes)
    assert Counter(tuple(board["tokens"]) for board in page.boards) == tokens


def test_page_asks_nobody_for_anything(tmp_path: Path):
    text = order_page.write(tmp_path / "order.html", synthetic_decodes()).read_text()
    page = Page(text)
    assert "example.org" in text, "the prompt that looks like a reference is gone"
    assert not {name for name, _ in page.attributes} & {"src", "action", "data", "srcset", "poster", "xlink:href"}
    assert not re.search(
        r"url\(|@import|https?:", "".join(re.findall(r"(?s)<style>.*?</style>|<script>.*?</script>", text))
    )
    assert not {tag for tag in page.tags if tag in ("link", "img", "iframe", "object", "embed", "base", "form")}
    assert "default-src 'none'" in text
    # What it links to is written beside it by stage report.
    stage = (ROOT / "components/stages/report.py").read_text(encoding="utf-8")
    assert "card.md" in page.links and all(f'folder / "{name}"' in stage for name in page.links)


def test_texts_cannot_become_markup(tmp_path: Path):
    (decode, *_) = synthetic_decodes(prompts=1)
    evil = '</pre><script>alert("x")</script><img src="http://x">'
    decode = {**decode, "prompt": evil, "gold": evil, "setting": evil, "task": evil, "tokens": [evil] * 16}
    page = Page(order_page.write(tmp_path / "order.html", [decode]).read_text())
    assert page.tags["script"] == 1 and page.tags["img"] == 0


def test_positions_never_committed_show_as_such(tmp_path: Path):
    decode = {**synthetic_decodes(prompts=1)[0]}
    decode["order"] = [-1, *decode["order"][1:]]
    page = Page(order_page.write(tmp_path / "order.html", [decode]).read_text())
    assert page.boards[0]["numbers"][0] == "never" and len(page.boards[0]["steps"]) == 15


def test_extremes_are_extreme_and_no_prompt_is_shown_twice():
    found = boards.cases(synthetic_decodes(prompts=40))["sudoku_many"]
    parts = dict(order_page.chosen(found, 3, 4))
    shown = [case.prompt for some in parts.values() for case in some]
    assert len(shown) == len(set(shown)) == 3 + 3 + 4 or len(shown) < 10
    best, worst = parts["Where the learned policy gains most"], parts["Where it loses most"]
    gains = sorted(case.gain for case in found)
    assert [case.gain for case in best] == gains[::-1][:3]
    assert [case.gain for case in worst] == [gain for gain in gains[:3] if gain < (0, 0)]


def test_the_learned_policy_stands_last_beside_each_heuristic():
    for found in boards.cases(synthetic_decodes()).values():
        for case in found:
            assert [d["family"] for d in case.decodes] == ["confidence", "entropy_bound", "distilled", "learned"]


def test_boards_know_grids_from_lines():
    decodes = {d["task"]: d for d in synthetic_decodes(prompts=1)}
    assert [boards.columns_of(d) for d in decodes.values()] == [4, 6, 9]
    assert boards.columns_of(decodes["arithmetic"], {"arithmetic": 3}) == 3
    sixteen = {**decodes["sudoku_many"], "tokens": list("3+4=7$$$$$$$$$$$")}
    assert boards.columns_of(sixteen) == 16, "sixteen positions that are no digits are no sudoku"
    worded = {**decodes["sudoku_many"], "tokens": list("1bc44321C1dl2dA3")}
    pair = {**worded, "tokens": list("12433412213443214312124331242431"), "order": [0] * 32}
    assert boards.columns_of(worded) == boards.columns_of(pair) == 4
    given = {**decodes["sudoku_many"], "prompt": "M.2..3...........4"[:17]}
    assert boards.clues_of(given) == {1, 4}
    assert boards.clues_of({**given, "prompt": "no grid of that length: .2..3"}) == frozenset()
    assert boards.clues_of({**pair, "prompt": "Z" + "1..............." * 2}) == {0, 16}
    assert boards.clues_of({**given, "prompt": "W;.2..3..........."}) == {1, 4}
    assert [boards.box_of(i, 36, 6) for i in (0, 2, 3, 12, 35)] == [(0, 0), (0, 0), (0, 1), (1, 0), (2, 1)]


def test_step_colours_differ_and_their_ink_reads():
    def luminance(colour: str):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for steps in (1, 2, 16, 36, 256):
        colours = [boards.step_colour(step, steps) for step in range(1, steps + 1)]
        lights = [luminance(colour) for colour in colours]
        assert np.all(np.diff(lights) > -0.005), "later must be lighter (up to rounding), for print in grey"
        assert len(set(colours)) == steps or steps > 200
        for colour in colours:
            light, dark = sorted((luminance(colour), luminance(boards.ink_on(colour))), reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 3.4, colour


def test_a_decode_without_its_steps_is_refused(tmp_path: Path):
    (decode, *_) = synthetic_decodes(prompts=1)
    for broken in ({**decode, "order": decode["order"][1:]}, {k: v for k, v in decode.items() if k != "nfe"}):
        with pytest.raises(DataError, match="decode 1"):
            order_page.write(tmp_path / "order.html", [broken])


# ---- the README's picture


def test_the_pair_is_the_usual_case_of_the_fastest_heuristic_that_is_as_accurate():
    cells = [cell for cell in synthetic() if cell.task == "sudoku_many"]
    decodes = synthetic_decodes(prompts=30)
    before, after = picture.typical_pair(decodes, cells)
    assert after["family"] == "learned" and before["prompt"] == after["prompt"]
    assert before["correct"] == after["correct"] == 1.0
    learned = fronts.headline(cells)
    assert learned is not None
    recorded = {("confidence", "1"), ("entropy_bound", "0.1")}
    rivals = [c for c in cells if c.block_length == 16 and (c.family, c.setting) in recorded]
    equal = [c for c in rivals if c.accuracy >= learned.accuracy]
    fair = min(equal, key=lambda c: c.nfe) if equal else max(rivals, key=lambda c: c.accuracy)
    assert before["family"] == fair.family
    lame = [replace(c, accuracy=0.0) if c.family == fair.family else c for c in cells]
    assert picture.typical_pair(decodes, lame)[0]["family"] != fair.family


def test_a_picture_needs_one_group_and_both_rules(tmp_path: Path):
    with pytest.raises(DataError, match="2 groups"):
        picture.draw(tmp_path / "picture.png", synthetic_decodes(), synthetic())
    many = [cell for cell in synthetic() if cell.task == "sudoku_many"]
    with pytest.raises(DataError, match="side by side"):
        picture.draw(tmp_path / "picture.png", [d for d in synthetic_decodes() if d["family"] == "learned"], many)


# ---- table and card


def test_difference_is_accuracy_minus_envelope():
    cells = synthetic()
    found = table.results(cells)
    assert {id(r.cell) for r in found} == {id(c) for c in cells if c.is_policy}
    for result in found:
        rivals = [c for c in cells if c.task == result.cell.task and not c.is_policy]
        reached = front_at([c.nfe for c in rivals], [c.accuracy for c in rivals], result.cell.nfe)
        assert result.difference == result.cell.accuracy - reached
        shown = [
            line.split(" | ")
            for line in table.markdown(table.results(cells)).splitlines()
            if f" {result.cell.nfe:.2f} " in line
        ]
        (row,) = [parts for parts in shown if result.cell.task in parts[0] and result.name == parts[3]]
        assert row[-1] == f"{100 * (result.cell.accuracy - reached):+.1f} |".replace("-", table.MINUS)


def test_policies_without_a_rival_get_a_dash_and_fast_ones_the_fastest_rival():
    cells = synthetic(tasks=(("sudoku_many", 16, 1.0),))
    alone = [cell for cell in cells if cell.is_policy]
    assert all(math.isnan(r.difference) for r in table.results(alone))
    assert "nan" not in table.markdown(table.results(alone)) and table.NONE in table.markdown(table.results(alone))
    fast = make_cell("sudoku_many", "learned", "", 16, 1.0, 16, 9.0)
    fastest = min((c for c in cells if not c.is_policy), key=lambda c: (c.nfe, -c.accuracy))
    (result, *_) = table.results([fast, *[c for c in cells if c.family != "learned"]])
    assert result.envelope == fastest.accuracy and "the fastest, at" in result.mixture


def test_card_says_how_to_load_and_where_not_to_use(tmp_path: Path):
    text = card.write(tmp_path / "card.md", FACTS, RUN, table.results(synthetic())).read_text()
    assert table.markdown(table.results(synthetic())) in text
    for part in ("0123abc", "uncommitted changes: yes", "lr: 0.0005", "## Limits", "84,123", "OnnxPolicy"):
        assert part in text
    assert not re.search(r"\$\w|None|nan", text), "a hole in the template"
    assert "Below the envelope" not in text
    worse = [make_cell("zebra", "learned", "", 16, 5.0, 16, 0.3), *synthetic(tasks=(("zebra", 16, 1.0),))[:-1]]
    text = card.markdown(FACTS, RUN, table.results(synthetic()), ood=table.results(worse))
    assert "Below the envelope" in text and "zebra on llada (learned policy): \N{MINUS SIGN}" in text
    assert "On tasks it never saw" in text and "On other dLLMs" not in text


def test_a_card_names_the_objective_that_was_trained() -> None:
    upo = {"objective": "upo", "signal": "dense", "reward": "additive", "reference": "distilled", "kl_coef": 0.1}
    for train, named in (
        ({}, "GRPO with reward = correct x speed^alpha, started"),
        (upo, "UPO with reward = partial score - alpha NFE / length, pulled to distilled by kl_coef = 0.1, started"),
    ):
        assert named in card.markdown(FACTS, RUN | {"settings": {"train": train}}, table.results(synthetic()))


def test_the_cards_example_is_python_on_names_that_exist():
    code = card.example(FACTS)
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)]
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert len(imports) == 4 and {FACTS.prompt, FACTS.denoiser, "policy.onnx", FACTS.canvas} <= set(strings)
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert all(hasattr(module, alias.name) for alias in node.names), node.module


# ---- all of them


@pytest.mark.e2e
def test_same_input_same_bytes(tmp_path: Path):
    many = [cell for cell in synthetic() if cell.task == "sudoku_many"]
    for folder in (tmp_path / "a", tmp_path / "b"):
        pareto.write_csv(folder / "pareto.csv", synthetic())
        pareto.draw(folder / "pareto.png", synthetic())
        pareto.draw_all(folder / "pareto-all.png", synthetic())
        learning.write_csv(folder / "learning.csv", synthetic_rounds())
        learning.draw(folder / "learning.png", synthetic_rounds())
        order_page.write(folder / "order.html", synthetic_decodes())
        picture.draw(folder / "picture.png", synthetic_decodes(), many)
        table.write(folder / "table.md", table.results(synthetic()))
        card.write(folder / "card.md", FACTS, RUN, table.results(synthetic()))
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(written) == 9, "something was left beside the files"
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = write_text(tmp_path / "table.md", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_importing_the_reports_loads_nothing_heavy():
    names = [f"components.reports.{p.stem}" for p in (ROOT / "components/reports").glob("*.py") if p.stem != "__init__"]
    heavy = {"torch", "matplotlib", "rich", "yaml", "pandas", "jinja2"}
    code = f"import sys, {', '.join(names)}; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


# ---- what `dvc plots show` is given


def test_the_plots_page_carries_its_libraries():
    folder = ROOT / "infra" / "dvc"
    page = (folder / "plots.html").read_text(encoding="utf-8")
    opening = re.findall(r"<script[^>]*>", page)
    packages = re.findall(r'<script data-package="([^"]+)">', page)
    assert [p.split("@")[0] for p in packages] == ["vega", "vega-lite", "vega-embed"]
    assert not any("src" in tag for tag in opening) and not re.search(r"<link[^>]*href", page)
    assert page.count("{plot_divs}") == 1 and "{scripts}" not in page, "DVC would put its own links in"
    readme, licences = (folder / "README.md").read_text(), (folder / "LICENSES.txt").read_text()
    for package in packages:
        name, version = package.split("@")
        assert f"{name} {version}" in readme
        assert name == "vega" or f"{name} {version}" in licences


def test_the_plots_template_reads_columns_that_are_written():
    template = json.loads((ROOT / "infra/dvc/pareto.json").read_text())
    text = json.dumps(template)
    known = {*pareto.COLUMNS, *(t["as"] for t in template["transform"]), "rev", "<DVC_METRIC_X>", "<DVC_METRIC_Y>"}
    assert set(re.findall(r'"field": "([^"]+)"', text)) <= known
    assert set(re.findall(r"datum\.(\w+)", text)) <= known
    colours = template["spec"]["layer"][-1]["encoding"]["color"]["scale"]["domain"]
    shades = next(t["calculate"] for t in template["transform"] if t["as"] == "shade")
    assert set(re.findall(r"'([a-z_]+)'", shades)) == set(colours) - {"other rule"}
    assert set(colours) - {"other rule"} <= {*POLICIES, *RULES}
