"""Laws of the heuristics' envelope: it is above every point and every mixture, and no higher than it must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import DataError
from components.maths.pareto import envelope_rows, front_at, upper_hull

# A coarse grid on purpose: equal NFE, equal accuracies and points on one line are the cases that go wrong.
point = st.tuples(st.integers(4, 64).map(lambda n: n / 4), st.integers(0, 20).map(lambda n: n / 20))
points = st.lists(point, min_size=1, max_size=12).map(lambda rows: np.asarray(rows, dtype=np.float64))


@given(points)
def test_no_point_lies_above_the_envelope(cells: np.ndarray):
    for nfe, accuracy in cells:
        assert front_at(cells[:, 0], cells[:, 1], nfe) >= accuracy - 1e-12


@given(points, st.integers(0, 11), st.integers(0, 11), st.floats(0, 1))
def test_no_mixture_of_two_cells_lies_above_the_envelope(cells: np.ndarray, i: int, j: int, share: float):
    a, b = cells[i % len(cells)], cells[j % len(cells)]
    mixed = a + share * (b - a)
    assert front_at(cells[:, 0], cells[:, 1], mixed[0]) >= mixed[1] - 1e-9


@given(points)
def test_corners_are_cells_that_rise_ever_more_slowly(cells: np.ndarray):
    nfe, accuracy = upper_hull(cells[:, 0], cells[:, 1])
    given_cells = {(x, y) for x, y in cells.tolist()}
    assert all((x, y) in given_cells for x, y in zip(nfe.tolist(), accuracy.tolist(), strict=True))
    assert np.all(np.diff(nfe) > 0) and np.all(np.diff(accuracy) > 0)
    assert np.all(np.diff(np.diff(accuracy) / np.diff(nfe)) < 0)
    assert nfe[0] == cells[:, 0].min() and accuracy[-1] == cells[:, 1].max()


@given(points, st.floats(1, 20))
def test_envelope_is_the_hull_joined_by_lines_and_level_outside(cells: np.ndarray, at: float):
    nfe, accuracy = upper_hull(cells[:, 0], cells[:, 1])
    assert front_at(cells[:, 0], cells[:, 1], at) == pytest.approx(np.interp(at, nfe, accuracy), abs=1e-9)


@given(points, st.permutations(range(12)))
def test_the_order_of_the_cells_does_not_matter(cells: np.ndarray, order: list[int]):
    shuffled = cells[[i for i in order if i < len(cells)]]
    for one, other in zip(upper_hull(*cells.T), upper_hull(*shuffled.T), strict=True):
        np.testing.assert_array_equal(one, other)


@given(points, st.floats(1, 20))
def test_a_cell_below_the_front_changes_nothing(cells: np.ndarray, at: float):
    more = np.concatenate([cells, [[cells[0, 0], cells[0, 1] - 0.1]]])
    before = front_at(cells[:, 0], cells[:, 1], at)
    assert before == front_at(more[:, 0], more[:, 1], at)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 7))
def test_rows_at_once_equal_rows_one_by_one(seed: int, rows: int, cells: int):
    rng = np.random.default_rng(seed)
    nfe, accuracy, at = rng.integers(1, 9, (rows, cells)), rng.random((rows, cells)), rng.uniform(0, 10, rows)
    together = envelope_rows(nfe, accuracy, at)
    alone = [front_at(nfe[r], accuracy[r], at[r]) for r in range(rows)]
    np.testing.assert_array_equal(together, alone)


def test_chunks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    nfe, accuracy, at = rng.uniform(1, 9, (50, 6)), rng.random((50, 6)), rng.uniform(1, 9, 50)
    whole = envelope_rows(nfe, accuracy, at)
    monkeypatch.setattr("components.maths.pareto.PAIRS_AT_ONCE", 100)  # two rows of 36 pairs at a time
    np.testing.assert_array_equal(envelope_rows(nfe, accuracy, at), whole)


def test_worked_example():
    nfe, accuracy = [2, 4, 4, 6, 8, 16], [0.2, 0.6, 0.3, 0.5, 0.8, 0.75]
    corners = upper_hull(nfe, accuracy)
    assert [c.tolist() for c in corners] == [[2, 4, 8], [0.2, 0.6, 0.8]]
    assert front_at(nfe, accuracy, 3) == pytest.approx(0.4)  # half of the prompts at 2, half at 4
    assert front_at(nfe, accuracy, 6) == pytest.approx(0.7)
    assert front_at(nfe, accuracy, 16) == pytest.approx(0.8)  # more forwards than needed lose nothing
    assert front_at(nfe, accuracy, 1.9) == pytest.approx(0.2)  # nobody is that fast: the fastest counts


@pytest.mark.parametrize(
    ("nfe", "accuracy"), [([], []), ([1, 2], [0.5]), ([1, float("nan")], [0.5, 0.6]), ([1, 2], [0.5, float("inf")])]
)
def test_unusable_points_are_refused(nfe: list[Any] | list[int] | list[float], accuracy: list[Any] | list[float]):
    with pytest.raises(DataError):
        upper_hull(nfe, accuracy)
    with pytest.raises(DataError):
        front_at(nfe, accuracy, 1.0)


def test_rows_of_unequal_shape_are_refused():
    with pytest.raises(DataError, match=r"\(R, C\)"):
        envelope_rows(np.ones((3, 2)), np.ones((3, 2)), np.ones(2))
