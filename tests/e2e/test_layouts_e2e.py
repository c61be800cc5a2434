"""Every layout of a checkpoint as a folder that params.yaml names: sharded, in bfloat16, through the commands.

One profile has them all; each is the domain's dLLM once and the other dLLM of stage transfer once.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from components import cli
from components.core.errors import DataError, SettingsError
from components.core.files import read_json
from components.stages import train as training
from tests.doubles import Unwatched
from tests.outputs import read_table
from tests.unit.test_checkpoints import shard
from tests.unit.test_layouts import LAYOUTS

torch.set_num_threads(1)
pytestmark = pytest.mark.e2e
NAMES = {layout.lower().replace(" ", "-"): layout for layout in LAYOUTS}
# A file takes 5 seconds. test_gpu_smoke exports over LLaDA, test_layouts over every layout.
EXPORTED = ("dream", "esm")
# Every tokenizer of the test checkpoints has these letters.
TASK = {"marker": "a", "box_rows": 1, "box_columns": 3, "min_clues": 2, "max_clues": 4}


def profile(folder: Path) -> dict[str, Any]:
    """gpu-smoke in seconds, over a square of 3 x 3 digits; one dLLM for each layout."""
    raw: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "profiles" / "gpu-smoke.yaml").read_text("utf-8"))
    raw["data"]["tasks"] = {"square": {"kind": "sudoku_many", "params": TASK, "canvas": None}}
    raw["data"]["counts"] |= {"train": 12, "tune": 3, "gate": 3, "test": 3}
    model = {"layout": "llada", "revision": None, "dtype": "bfloat16", "rows": {}}
    raw["models"] = {name: model | {"source": str(folder / name)} for name in NAMES}
    raw["headroom"] |= {"cases": {}}
    raw["policy"] |= {"top_k": 3, "width": 8, "heads": 1, "mlp_width": 8, "pair_width": 4, "offsets": 3}
    raw["policy"]["hidden_states"] = True
    raw["decode"]["block_length"] = None
    raw["influence"] |= {"chunks": 1, "prompts": 2, "states": 4, "probes": 2}
    raw["distill"] |= {"iterations": 1, "prompts": 2}
    raw["train"] |= {"signal": "dense", "prompts": 2, "group": 3}
    raw["sweep"] |= {
        "block_lengths": [3, None],
        "rules": {"threshold": [0.2], "confidence": [3], "overlap_rise": [0.4]},
    }
    raw["evaluate"] = {"tasks": ["square"], "gate_task": "square"}
    raw["ood"] = {}
    return raw


def next_of(name: str) -> str:
    names = list(NAMES)
    return names[(names.index(name) + 1) % len(names)]


def unmask(*words: str) -> None:
    cli.app(list(words), standalone_mode=False)


def use(raw: dict[str, Any], name: str, **changes: Any) -> Path:
    """Write params.yaml for this dLLM, transfer to the next one; the folder of the outputs."""
    raw = raw | {"domain": {"model": name, "tasks": {"square": 1}}}
    raw["transfer"] = {"next": {"model": next_of(name), "task": "square"}}
    for section, values in changes.items():
        raw[section] = raw[section] | values
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return Path("outputs", raw["profile"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A root with the prompts and every dLLM pinned, and its settings; take a copy."""
    root, folder = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("checkpoints")
    raw = profile(folder)
    for name, layout in NAMES.items():
        (folder / name).mkdir()
        LAYOUTS[layout](folder / name)
        shard(folder / name, "model-00002-of-00002.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        outputs = use(raw, next(iter(NAMES)))
        unmask("prepare")
        for name in NAMES:
            unmask("pretrain", "--model", name)
            pinned = read_json(outputs / "pretrain" / name / "source.json")
            assert pinned == {"source": str(folder / name), "revision": None, "dtype": "bfloat16"}
    return root, raw


@pytest.fixture
def raw(prepared: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings, in a folder with a copy of the root."""
    shutil.copytree(prepared[0], tmp_path / "root")
    monkeypatch.chdir(tmp_path / "root")
    monkeypatch.setattr(training, "_tracker", lambda workspace, lines, state, begun: Unwatched(lines, state.iteration))
    return prepared[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_passes_every_command(name: str, raw: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    outputs = use(raw, name)
    for stage in ("influence", "distill", "train"):
        unmask(stage)
    assert read_json(outputs / "metrics" / "influence.json")["forwards"] > 0
    weights = [(outputs / stage / "policy" / "policy.safetensors").read_bytes() for stage in ("distill", "train")]
    assert weights[0] != weights[1], "two iterations have changed the policy"
    unmask("rules", "--group", "evaluate", "--case", "square")
    unmask("evaluate", "--case", "square")
    unmask("rules", "--group", "transfer", "--case", "next")
    unmask("transfer", "--case", "next")
    for stem, model in (("evaluate-square", name), ("transfer-next", next_of(name))):
        results = read_table(outputs / "tables" / f"{stem}.csv")
        assert {result.denoiser for result in results} == {model}
        assert {"learned", "distilled", "threshold", "confidence", "overlap_rise"} == {r.family for r in results}
        assert all(result.unfinished == 0 for result in results)
    policy, folder = str(outputs / "train" / "policy"), raw["models"][name]["source"]
    shown = decoded(outputs, policy, capsys)
    assert decoded(outputs, policy, capsys, "--model", folder) == shown and "forward pass" in shown[-1]
    if name in EXPORTED:
        unmask("export")
        parity = read_json(outputs / "metrics" / "export.json")
        assert parity["texts"] == parity["equal_texts"] > 0
        assert decoded(outputs, str(outputs / "export" / "policy.onnx"), capsys, "--model", folder) == shown


def decoded(outputs: Path, policy: str, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    """What `unmask decode` shows of the first test prompt: the canvas after each step, then the verdict."""
    lines = (outputs / "data" / "tasks" / "square" / "test.jsonl").read_text("utf-8").splitlines()
    capsys.readouterr()
    unmask("decode", json.loads(lines[0])["prompt"], "--policy", policy, *more)
    label, *shown = capsys.readouterr().out.splitlines()
    assert label == policy
    return shown


ATTENTION = r"reads the attention of layers \(-1,\); MaskedLMDenoiser shows 0\. Use layers that it has"


@pytest.mark.parametrize(
    ("changes", "stage", "sentence"),
    [
        ({"policy": {"attention": [-1]}}, ["influence"], ATTENTION),
        ({"sweep": {"rules": {"adas": [0.4]}}}, ["rules", "--group", "gate"], ATTENTION.replace("-1,", ".*")),
        ({"decode": {"cache": "dual"}}, ["distill"], r"cache='dual': MaskedLMDenoiser keeps .*\. Use cache: none"),
    ],
)
def test_what_a_masked_language_model_cannot_show_is_refused(
    changes: dict[str, Any], stage: list[str], sentence: str, raw: dict[str, Any]
) -> None:
    """Policies and rules that read attention, and caches of keys and values, are for decoders."""
    use(raw, "bert", **changes)
    with pytest.raises(SettingsError, match=sentence):
        unmask(*stage)


def test_prompts_that_a_tokenizer_cannot_write_are_refused(raw: dict[str, Any]) -> None:
    """LLaDA's, which has no token for what is unknown, and a masked language model's, which has one."""
    raw["data"] = raw["data"] | {
        "tasks": {"square": {"kind": "sudoku_many", "params": TASK | {"marker": "Z"}, "canvas": None}}
    }
    for name, sentence in (("llada", r"no token for \['Z'\]"), ("bert", r"contains \['\[UNK\]'\], control tokens")):
        use(raw, name)
        unmask("prepare")
        for model in ("llada", "bert"):
            unmask("pretrain", "--model", model)
        with pytest.raises(DataError, match=sentence):
            unmask("rules", "--group", "gate")
