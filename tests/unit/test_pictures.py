"""Laws of the pictures: what is in question fills them, nothing lies over anything, and what a coupled policy saw is
what is drawn."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from components.core.errors import DataError
from components.evaluation.results import EvalResult
from components.policies.rules import RULES, decoders, heuristic, label_of
from components.reports import boards, fronts, headroom, learning, order_page, pareto, picture, views
from tests.messages import has_remedy
from tests.unit.test_reports import make_cell, synthetic, synthetic_decodes, synthetic_rounds

ROOT = Path(__file__).parents[2]
TASKS = tuple((f"task_{i}", 16, 1.0 - 0.1 * i) for i in range(5))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been written, in order."""
    drawn: list[Figure] = []
    for module in (pareto, learning, picture):
        monkeypatch.setattr(module, "write_figure", lambda path, figure: drawn.append(figure))
    return drawn


def boxes(figure: Figure, artists: list[Any]) -> list[np.ndarray]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [artist.get_window_extent(renderer).get_points() for artist in artists]


# ---- accuracy against forwards


def test_the_main_figure_has_the_first_three_tasks_and_the_page_has_all_on_the_same_axes(figures: list[Figure]) -> None:
    cells = synthetic(tasks=TASKS)
    pareto.draw(Path("pareto.png"), cells)
    pareto.draw_all(Path("pareto-all.png"), cells)
    main, page = ([ax for ax in figure.axes] for figure in figures)
    assert [ax.get_title(loc="left") for ax in main] == ["task 0", "task 1", "task 2"]
    assert [ax.get_title(loc="left") for ax in page] == [f"task {i}" for i in range(5)]
    for axes in (main, page):
        assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_what_is_in_question_fills_the_width_and_no_axis_goes_over_100_percent(
    figures: list[Figure], seed: int
) -> None:
    cells = synthetic(seed=seed)
    pareto.draw(Path("pareto.png"), cells)
    policies = [c for c in cells if c.is_policy]
    ends = [fronts.saturation(group) for group in fronts.groups(cells).values()]
    for ax in figures[0].axes:
        left, right = map(math.log, ax.get_xlim())
        first, last = (math.log(f([c.nfe for c in policies] + ends)) for f in (min, max))
        assert left < first and last < right and last - first > 0.4 * (right - left)
        assert ax.get_ylim()[1] == 100 and max(ax.get_yticks()) <= 100
        low = min(100 * c.accuracy_low for c in policies)
        assert 0 <= ax.get_ylim()[0] <= low


def test_every_rule_has_a_kind_and_those_of_module_dependence_look_at_pairs() -> None:
    for name, rule in decoders().items():
        number = rule.low if rule.default is None and not rule.above else rule.default or 0.5
        if not rule.number or rule.admits(number):
            module = type(heuristic(name, number if rule.number else None)).__module__
            assert rule.reads_pairs == module.endswith(".dependence"), name
    assert fronts.kind_of("overlap") == "pair" and fronts.kind_of("threshold") == "marginal"
    assert {fronts.kind_of(name) for name in ("random", "confidence", "top_k_random")} == {"ordered"}
    assert {fronts.kind_of(name) for name in RULES} == set(fronts.KINDS)


def test_the_strongest_rule_of_a_kind_is_the_one_that_no_other_of_it_beats() -> None:
    def better(cells: list[EvalResult], family: str) -> list[EvalResult]:
        return [replace(c, accuracy=min(1.0, c.accuracy + 0.2)) if c.family == family else c for c in cells]

    cells = [c for c in synthetic(tasks=TASKS[:1]) if c.block_length == 16]
    cells += [make_cell("task_0", name, "0.5", 16, 5.0 + i, 16, 1.0) for i, name in enumerate(("overlap", "adas"))]
    for family in ("threshold", "factor", "random", "entropy", "adas", "overlap"):
        found = fronts.strongest(better(cells, family))
        assert set(found) == set(fronts.KINDS)
        assert found[fronts.kind_of(family)][0].family == family or family in ("random", "entropy")
    # A rule that starts only where the others are done is not the strongest, however accurate.
    late = [*cells, make_cell("task_0", "klass", "0.9", 16, 16.0, 16, 9.0)]
    assert fronts.strongest(late)["marginal"][0].family != "klass"


@pytest.mark.parametrize("draw", [pareto.draw, pareto.draw_all])
def test_names_lie_over_no_other_name_no_policy_and_within_the_panel(figures: list[Figure], draw: Any) -> None:
    cells = synthetic()
    draw(Path("pareto.png"), cells)
    (figure,) = figures
    for ax, group in zip(figure.axes, fronts.groups(cells).values(), strict=True):
        named = fronts.strongest(group)
        names = {label_of(sweep[0].family) for sweep in named.values()}
        assert {text.get_text().split(",\n")[0] for text in ax.texts[1:]} == names
        shown, frame = boxes(figure, list(ax.texts)), boxes(figure, [ax])[0]
        stars = ax.transData.transform([(c.nfe, 100 * c.accuracy) for c in group if c.is_policy])
        for i, box in enumerate(shown):
            assert (box[0] >= frame[0] - 3).all() and (box[1] <= frame[1] + 3).all()
            assert not any(((star > box[0]) & (star < box[1])).all() for star in stars)
            others = shown[:i] + shown[i + 1 :]
            assert not any((box[0] < other[1]).all() and (box[1] > other[0]).all() for other in others)


def test_the_headroom_of_every_case_is_drawn_and_much_of_it_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(headroom, "write_figure", lambda path, figure: drawn.append(figure))
    order = {"random": 0.34, "surest_first": 0.5, "best_of_random": 0.94, "critical": 1.0}
    speed = {"at_half": 0.82, "best": 0.875, "critical": 0.0}
    cases = [{"model": "mini", "task": task, "order": order, "speed": speed} for task in ("n_queens", "many")]
    headroom.draw(Path("headroom.png"), cases)
    axes = drawn[0].axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["many · mini", "n queens · mini"]
    for ax, part, colour in zip(axes, (order, speed), (headroom.MUCH, headroom.LITTLE), strict=True):
        marks = [line for line in ax.lines if len(np.asarray(line.get_xdata())) == 1]
        shares = [share for name, share in part.items() if name != "critical"]
        assert sorted(np.asarray(m.get_xdata()).item() for m in marks) == sorted(100 * s for s in shares * 2)
        assert {m.get_markeredgecolor() for m in marks} == {colour} and ax.get_xlim() == (0, 100)


@pytest.mark.parametrize(("share", "shown"), [(0.314, "31"), (0.0, "0"), (-0.2, headroom.NONE)])
def test_an_oracle_that_is_worse_than_the_rules_wins_nothing_back(share: float, shown: str) -> None:
    case: dict[str, Any] = {
        "model": "mini",
        "task": "many",
        "order": {"random": 0.34, "surest_first": 0.5, "best_of_random": 0.94, "critical": 1.0},
        "learned_order": {"accuracy": 0.6, "gain": 0.1, "gain_low": 0.05, "gain_high": 0.15},
        "speed": {"best": 0.875, "saturates_at_nfe": 4.5, "at_half": 0.82, "critical": 0.0},
        "dependence": {"oracle_at_half": 0.75, "share_of_loss": share},
    }
    heading, _, row = (line.split(" | ") for line in headroom.markdown([case]).splitlines()[:3])
    assert row[heading.index("of the loss, %")] == shown


def test_no_line_of_a_rule_lies_above_what_all_rules_reach() -> None:
    for group in fronts.groups(synthetic(tasks=TASKS[:2])).values():
        ax, rules = Figure().subplots(), [c for c in group if not c.is_policy]
        pareto.panel(ax, group)
        lines = [line for line in ax.lines if line.get_color() in {k["color"] for k in pareto.KIND_LOOKS.values()}]
        assert len([line for line in lines if line.get_linestyle() == "-"]) == len(fronts.strongest(group))
        for x, y in (point for line in lines for point in np.asarray(line.get_xydata()).tolist()):
            assert y <= 100 * fronts.envelope(rules, x) + 1e-6


# ---- the learning curve


def judged(values: list[float]) -> list[dict[str, Any]]:
    """Rounds of which every tenth was validated, with these rewards."""
    rounds = synthetic_rounds(10 * len(values))
    for i, value in enumerate(values):
        rounds[10 * i + 9] |= {"tune/reward": value, "tune/correct": 0.99, "tune/nfe": 5.0}
    return rounds


@pytest.mark.parametrize(("values", "kept"), [([0.1, 0.5, 0.3], 19), ([0.4, 0.2, 0.4], 9), ([0.1, 0.2, 0.3], 29)])
def test_the_iteration_that_was_kept_is_the_first_best_of_the_validation_and_is_marked(
    figures: list[Figure], values: list[float], kept: int
) -> None:
    rounds = judged(values)
    assert learning.kept_step(rounds) == kept
    learning.draw(Path("learning.png"), rounds)
    (figure,) = figures
    for ax in figure.axes:
        marks = [line for line in ax.lines if line.get_marker() == "*" and np.size(line.get_xdata())]
        assert [np.asarray(line.get_xdata()).tolist() for line in marks] == (
            [[kept]] if ax.get_title(loc="left") in ("reward", "right answers", "forwards per prompt") else []
        )
        assert any(np.asarray(line.get_xdata()).tolist() == [kept, kept] for line in ax.lines)
        assert ax.get_ylabel() in {panel.unit for panel in learning.PANELS.values()}
    (reward,) = [ax for ax in figure.axes if ax.get_title(loc="left") == "reward"]
    curves = [np.asarray(line.get_ydata()).tolist() for line in reward.lines]
    assert values in curves and [r["reward/mean"] for r in rounds] in curves
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(said) == 4 and f"kept: iteration {kept}" in said[-1]


def test_stage_train_keeps_by_what_the_figure_marks() -> None:
    code = (ROOT / "components/stages/train.py").read_text(encoding="utf-8")
    kept = rf'reward = metrics\["{learning.KEPT_BY}"\]\n\s+if (\S+) is None or reward > \1:\n'
    assert len(re.findall(kept, code)) == 1


def test_shares_are_in_percent_and_end_at_100(figures: list[Figure]) -> None:
    learning.draw(Path("learning.png"), [r | {"reward/correct": 1.0} for r in synthetic_rounds()])
    (ax,) = [ax for ax in figures[0].axes if ax.get_ylabel() == "%"]
    assert ax.get_ylim()[1] == 100 and ax.get_ylim()[0] < 100


# ---- what a coupled policy saw


def seen(seed: int = 0) -> tuple[dict[str, Any], views.View]:
    decode = next(d for d in synthetic_decodes(seed) if d["family"] == "learned" and "view" in d)
    view = views.view_of(decode)
    assert view is not None
    return decode, view


@pytest.mark.parametrize("seed", range(5))
def test_kept_apart_is_what_would_be_taken_alone_with_the_taken_one_most_against_it(seed: int) -> None:
    _, view = seen(seed)
    pairs = dict((j, i) for i, j in view.apart)
    assert pairs
    for j, utility in enumerate(view.alone):
        against = {i: view.shift[i][j] for i in view.taken}
        wanted = j not in view.taken and utility is not None and utility > 0 and min(against.values()) < 0
        assert (j in pairs) == wanted and (not wanted or against[pairs[j]] == min(against.values()))


def test_a_view_that_does_not_fit_its_decode_is_refused_and_the_remedy_named() -> None:
    decode, view = seen()
    whole = decode["view"]
    for broken in (
        whole | {"alone": view.alone[:-1]},
        whole | {"shift": [*view.shift[:-1], view.shift[-1][:-1]]},
        whole | {"taken": [len(view.alone)]},
        {"alone": view.alone},
    ):
        with pytest.raises(DataError, match="first step of a decode") as refused:
            views.view_of(decode | {"view": broken})
        assert has_remedy(str(refused.value))
    del decode["view"]
    assert views.view_of(decode) is None


def test_the_colour_of_a_shift_says_its_sign_and_deepens_with_its_size() -> None:
    def channels(shift: float) -> list[int]:
        colour = views.shift_colour(shift)
        return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

    assert views.shift_colour(0.0) == "#ffffff"
    for sign, strong in ((-1, 0), (1, 2)):
        shades = [channels(sign * size) for size in (0.1, 0.5, 1.5, 3.0, 5.0)]
        assert all(shade[strong] == max(shade) for shade in shades)
        assert all(sum(a) > sum(b) for a, b in pairwise(shades))
        assert channels(sign * 50.0) == shades[-1]


def test_the_picture_shows_the_first_step_of_the_decode_beside_it(figures: list[Figure]) -> None:
    cells, decodes = [c for c in synthetic() if c.task == "sudoku_many"], synthetic_decodes()
    _, after = picture.typical_pair(decodes, cells)
    view = views.view_of(after)
    assert view is not None
    picture.draw(Path("picture.png"), decodes, cells)
    step, fine = (
        (ax, ax.patches)
        for ax in figures[0].axes
        if ax.get_title(loc="left") in ("its first forward", "what one does to the others")
    )
    arcs = [patch for patch in step[1] if isinstance(patch, FancyArrowPatch)]
    tiles = [patch for patch in step[1] if isinstance(patch, FancyBboxPatch)]
    first = boards.step_colour(1, max(map(boards.last_step, picture.typical_pair(decodes, cells))))
    assert len(arcs) == len(view.apart) and len(tiles) == 16
    assert [i for i, tile in enumerate(tiles) if to_hex(tile.get_facecolor()) == first] == list(view.taken)
    small = [patch for patch in fine[1] if isinstance(patch, Rectangle)]
    colours = [to_hex(patch.get_facecolor()) for patch in small]
    wanted = [views.shift_colour(view.shift[i][j]) for i in range(16) for j in range(16)]
    assert [c for n, c in enumerate(colours) if n % 17] == [c for n, c in enumerate(wanted) if n % 17]


def test_a_policy_without_pair_shifts_has_two_boards_and_the_front(figures: list[Figure]) -> None:
    cells = [c for c in synthetic() if c.task == "sudoku_many"]
    decodes = [{k: v for k, v in d.items() if k != "view"} for d in synthetic_decodes()]
    picture.draw(Path("picture.png"), decodes, cells)
    assert len(figures[0].axes) == 4 and not any(
        ax.get_title(loc="left") == "its first forward" for ax in figures[0].axes
    )


def test_the_page_shows_the_pairs_of_the_first_step(tmp_path: Path) -> None:
    decode, view = seen()
    text = order_page.write(tmp_path / "order.html", [decode]).read_text(encoding="utf-8")
    assert text.count('<g class="taken"') == len(view.taken)
    assert text.count('<g class="apart"') == text.count('class="cause"') == len(view.apart)
    (shift,) = re.findall(r'data-shift="([^"]*)"', text)
    assert shift == str([list(row) for row in view.shift]).replace(" ", "")
    plain = order_page.write(tmp_path / "plain.html", [{k: v for k, v in decode.items() if k != "view"}])
    assert "<svg" not in plain.read_text(encoding="utf-8")


def test_the_first_forwards_differ_in_colour_also_beside_a_rule_of_many() -> None:
    for steps in (3, 5, 16, 32, 81):
        colours = [boards.step_colour(step, steps) for step in range(1, min(steps, 4) + 1)]
        codes = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], dtype=float)
        assert np.abs(np.diff(codes, axis=0)).max(1).min() > 15, (steps, colours)
