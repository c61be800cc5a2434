"""Work in workers is the work done one after the other: same results, same order, same gradients bit for bit."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from components.core import workers
from components.core.rng import generator
from components.core.timer import Timer
from components.denoisers import embedded
from components.trainers import pretrain

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Two torch threads, as many as the workers of these tests share."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_as_many_workers_as_threads_and_as_there_is_work_for(threads: int):
    assert [workers.count(CPU, most) for most in (-1, 0, 1, 2, 9)] == [1, 1, 1, 2, 2]
    assert workers.count(torch.device("cuda"), 9) == 1


def test_results_come_in_order_and_workers_share_the_threads(threads: int):
    with workers.pool(2) as run:
        assert list(run(lambda n: (time.sleep(0.02 * (n == 0)), n)[1], range(6))) == list(range(6))
        assert list(run(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    assert torch.get_num_threads() == threads


def test_an_error_in_a_worker_is_raised_and_leaves_the_threads_as_they_were(threads: int):
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        raise ValueError(f"no {number}")

    with pytest.raises(ValueError, match="no 0"), workers.pool(2) as run:
        list(run(work, range(50)))
    assert torch.get_num_threads() == threads and len(begun) < 50


def test_each_queue_does_its_own_work_in_order_in_one_thread(threads: int):
    with workers.queues(2) as (left, right):
        seen = [
            list(run(lambda n: (n, threading.get_ident(), torch.get_num_threads()), range(9))) for run in (left, right)
        ]
    for queue in seen:
        assert [n for n, _, _ in queue] == list(range(9)) and {count for _, _, count in queue} == {1}
        assert len({thread for _, thread, _ in queue}) == 1
    assert seen[0][0][1] != seen[1][0][1] and torch.get_num_threads() == threads


def test_an_error_in_one_queue_ends_the_work_of_all(threads: int):
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        if number == 0:
            raise ValueError("no 0")

    with pytest.raises(ValueError, match="no 0"), workers.queues(2) as (left, right):
        right(work, range(1, 50))
        list(left(work, range(50)))
    assert torch.get_num_threads() == threads and len(begun) < 50


def test_the_timer_gets_the_mean_of_workers_that_run_at_the_same_time(threads: int):
    def piece(seconds: float):
        def run(timer: Timer) -> str:
            timer.seconds["section"] += seconds
            return "done"

        return run

    timer = Timer()
    assert workers.timed([piece(1.5), piece(2.5)], timer) == ["done", "done"]
    assert set(timer.seconds) == {"section"}
    assert timer.seconds["section"] == 2.0  # not their sum


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_gradients_are_those_of_the_sum_and_no_worker_changes_a_bit(sizes: list[int], seed: int):
    """One parameter is not in every loss, two have the very same gradient, one is in none; what was there stays."""
    source = generator("workers", seed)
    model = nn.ParameterDict(
        {n: nn.Parameter(torch.randn(4, dtype=torch.float64, generator=source)) for n in "abcd"} | {"e": torch.zeros(4)}
    )
    inputs = [torch.randn(n, 4, dtype=torch.float64, generator=source) for n in sizes]

    def loss(number: int) -> torch.Tensor:
        shifted = model["a"] + model["b"]
        value = ((inputs[number] * model["c"] if number % 2 else inputs[number]) + shifted).tanh().sum()
        return value + model["d"].sum()

    def gradients(lane_count: int) -> list[torch.Tensor]:
        for parameter in model.values():
            parameter.grad = torch.ones_like(parameter)
        parameters = [p for n, p in model.items() if n != "e"]
        works = [lambda n=n: (loss(n), n) for n in range(len(sizes))]
        before = torch.get_num_threads()
        torch.set_num_threads(lane_count)
        try:
            assert workers.add_gradients(works, parameters) == list(range(len(sizes)))
        finally:
            torch.set_num_threads(before)
        return [p.grad.clone() for p in parameters if p.grad is not None]

    one, two, many = gradients(1), gradients(2), gradients(5)
    assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(one, two, many, strict=True))
    for parameter in model.values():
        parameter.grad = torch.ones_like(parameter)
    torch.stack([loss(n) for n in range(len(sizes))]).sum().backward()
    for name, mine in zip("abcd", one, strict=True):
        torch.testing.assert_close(mine, model[name].grad)


def test_pretraining_gives_the_same_weights_with_one_lane_and_with_two(threads: int):
    """Batches of several pieces, so that the second worker has something to do."""
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        denoiser, _ = embedded.build("llada", "abcdef", embedded.Shape(16, 2, 2, 32, 32), seed=3)
        answers = torch.randint(4, 10, (150, 6), generator=generator("workers", "answers"))
        prompts, attend = answers.flip(1), torch.ones(150, 6, dtype=torch.bool)
        batches = [
            pretrain.Batch(prompts, attend, answers, 0.8),
            pretrain.Batch(prompts[:40], attend[:40], answers[:40], 0.2),
        ]
        assert [len(p.answer_BL) for p in batches[0].pieces()] == [50, 50, 50] and len(batches[1].pieces()) == 1
        assert sum(p.weight for b in batches for p in b.pieces()) == pytest.approx(1.0)
        reports: list[dict[str, float]] = []
        pretrain.pretrain(
            denoiser,
            lambda _, batches=batches: batches,
            pretrain.Schedule(4, 0.01, 1, 7),
            lambda _, metrics, reports=reports: reports.append(metrics),
        )
        found.append((denoiser.model.state_dict(), reports))
    (one, first), (two, second) = found
    assert first == second
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_pieces_that_were_added_before_memory_ran_out_do_not_count_twice():
    """The second of two pieces is refused; what was there before the first one stays."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)

    def loss(row_n: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        if 4 in row_n and len(row_n) > 1:
            raise MemoryError
        return weight.sum() * row_n.sum(), row_n.tolist()

    room = workers.Room(3)
    assert workers.add_gradients_by_piece(loss, torch.arange(5), [weight], room) == [[0], [1], [2], [3], [4]]
    assert room.rows == 1 and weight.grad.tolist() == [11.0] * 3
    assert workers.add_gradients_by_piece(loss, torch.arange(0), [weight], room) == []
