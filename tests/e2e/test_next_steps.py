"""The last lines of `unmask promote`, which `make train` ends with: every page, address and command in them holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from components.cli import stages, tools
from components.commands.next_steps import LOCAL, PAGES, next_steps
from components.commands.promote import promote
from components.evaluation.gate import Verdict
from components.tracking import pages, store
from tests.outputs import PICK
from tests.registry import train

pytestmark = pytest.mark.e2e


def ended(root: Path, accuracy: float) -> tuple[Verdict, str]:
    outputs = train(root, accuracy=accuracy, iterations=3)
    (root / "dvc.lock").touch()
    verdict = promote(outputs, root, PICK)
    return verdict, "\n".join(next_steps(outputs, root, "tiny", verdict))


def commands(said: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in said.partition("next:\n")[2].splitlines()]


@pytest.mark.parametrize("accuracy", [0.88, 0.5])
def test_the_last_lines_name_what_is_there(root: Path, accuracy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pages.UI, raising=False)
    verdict, said = ended(root, accuracy)
    assert verdict.promote == (accuracy > 0.6)
    listed = {name for name in PAGES if f"  outputs/tiny/{name} " in said}
    assert listed == {name for name in PAGES if (root / "outputs" / "tiny" / name).exists()} != set()
    for words in commands(said):
        assert words[0] in ("dvc", "git") or words[1] in [c.__name__ for c in (*stages.COMMANDS, *tools.COMMANDS)]
        for path in (word for word in words if word.startswith(("outputs/", "dvc.lock"))):
            assert (root / path).exists()
    assert all(len(line) <= 80 for line in said.splitlines() if "http://" not in line)


@pytest.mark.parametrize("accuracy", [0.88, 0.5])
def test_the_policy_to_compare_with_is_the_one_that_was_judged(root: Path, accuracy: float) -> None:
    verdict, said = ended(root, accuracy)
    (compare,) = [words for words in commands(said) if words[1] == "compare"]
    assert compare[3].endswith("@champion" if verdict.promote else "export/policy.onnx")
    assert ["git"] * verdict.promote == [words[0] for words in commands(said) if words[0] == "git"]


def test_the_link_opens_the_run_and_the_command_serves_its_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pages.UI, raising=False)
    verdict, said = ended(root, 0.88)
    (served,) = re.findall(r"served by: mlflow ui --backend-store-uri (\S+)", said)
    run = store.connect(served).get_run(str(verdict.run_id))
    assert pages.run(LOCAL, run.info.experiment_id, run.info.run_id) in said
    monkeypatch.setenv(pages.UI, "http://127.0.0.1:7")
    again = "\n".join(next_steps(root / "outputs" / "tiny", root, "tiny", verdict))
    assert "  http://127.0.0.1:7/#/experiments/" in again and "served by" not in again
