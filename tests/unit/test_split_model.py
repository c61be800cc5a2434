"""A dLLM over memory and disk by accelerate's device map: bit for bit the one that was not split, in every use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from components.core.errors import CheckpointError
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import check_denoiser, load, with_cache
from components.policies.heuristics import Threshold
from tests.unit.test_denoisers import WRITERS, logits_of
from tests.unit.test_masked_models import write_masked

torch.set_num_threads(1)
ROOM: dict[int | str, int | str] = {
    "cpu": 12_000,
    "disk": 10**9,
}  # bytes: of two layers of 10 kB in float32 one stays in memory


@pytest.mark.parametrize("layout", WRITERS)
def test_a_split_model_is_the_whole_one_bit_for_bit(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    (whole, encoder), (parts, _) = load(tmp_path), load(tmp_path, "auto", limits=ROOM)
    placed = set(parts.model.hf_device_map.values())
    assert placed == {"cpu", "disk"}, parts.model.hf_device_map
    assert any(weight.is_meta for weight in parts.model.parameters())
    ids_BT = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits_of(parts, ids_BT), logits_of(whole, ids_BT))  # type: ignore[arg-type]
    assert parts.fingerprint == whole.fingerprint and check_denoiser(parts) == []
    job = Job.of([encoder.prompt(text) for text in ("ab", "abc 1", "b")], 8, 4)
    one, two = (rollout(denoiser, Threshold(0.9), job, DecodeOptions(workers=2)) for denoiser in (whole, parts))
    assert torch.equal(one.canvas_RL, two.canvas_RL) and torch.equal(one.order_RL, two.order_RL)
    cached = rollout(with_cache(parts, "dual"), Threshold(0.9), job, DecodeOptions(workers=1))
    assert torch.equal(
        cached.canvas_RL, rollout(with_cache(whole, "dual"), Threshold(0.9), job, DecodeOptions(workers=1)).canvas_RL
    )


def test_a_model_that_fits_on_one_device_lies_there(tmp_path: Path) -> None:
    WRITERS["llada"](tmp_path)
    denoiser, _ = load(tmp_path, "auto", limits={"cpu": "1GiB"})
    assert denoiser.device == torch.device("cpu") and not any(weight.is_meta for weight in denoiser.model.parameters())


def test_what_cannot_be_split_is_refused_in_a_sentence(tmp_path: Path) -> None:
    WRITERS["llada"](tmp_path / "llada")
    with pytest.raises(CheckpointError, match="Give one more memory"):
        load(tmp_path / "llada", "auto", limits={"cpu": 10, "disk": 10**9})
    write_masked(tmp_path / "bert", "Bert")
    with pytest.raises(CheckpointError, match="Name one device"):
        load(tmp_path / "bert", "auto")
