"""What several processes share, where there is one; tests/e2e/test_processes.py has two."""

from __future__ import annotations

import pytest
import torch

from components.core import processes
from components.core.errors import SettingsError
from tests.messages import has_remedy


def test_one_process_is_not_a_group() -> None:
    """Figures pass through to the bit, -0.0 and the last digit included."""
    third = {"a": 1 / 3, "b": -0.0}
    with processes.joined(), processes.main_first():
        assert (processes.size(), processes.rank()) == (1, 0)
        assert str(processes.added(third)) == str(third) == str(processes.averaged(third, {"a": 3, "b": 7}))
        assert processes.shard(["x", "y"]) == ["x", "y"]
        parameter = torch.zeros(2)
        processes.sum_gradients([parameter])
        assert parameter.grad is None


def test_means_are_over_the_items_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three have items, and different numbers of them."""
    others = [{"a": (4.0, 1)}, {}]
    monkeypatch.setattr(processes, "gathered", lambda own: [own, *others])
    assert processes.averaged({"a": 1.0}, {"a": 2}) == {"a": 2.0}


def test_shards_are_all_items_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "size", lambda: 3)
    for count in range(8):
        parts = []
        for rank in range(3):
            monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
            parts.append(processes.shard(range(count)))
        assert sorted(item for part in parts for item in part) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_launcher_that_started_one_process_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --num_processes 2` does that without a GPU."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert processes.launched() == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SettingsError, match="one process of several") as refused, processes.joined():
        pytest.fail("it trains alone")
    assert has_remedy(str(refused.value))
