"""An installed wheel in an empty folder: what needs no repository works there, the rest is refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.messages import has_remedy
from tests.wheel import build_wheel

pytestmark = pytest.mark.e2e
PROMPT = "W.1...4..4..1..3."
# As if the extra were not installed.
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["unmask", *{words!r}]
from components.cli import main
main()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder / "site"]
    subprocess.run([*pip, build_wheel(folder)], check=True)
    return folder / "site"


def run(site: Path, folder: Path, *words: str, absent: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    if absent:
        return python(site, folder, "-c", WITHOUT.format(absent=set(absent), words=list(words)))
    return python(site, folder, "-m", "components.cli", *words)


def python(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A process that finds the wheel's code and no other."""
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheels_code_is_what_runs(site: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import components; print(components.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(site / "components" / "__init__.py")


def test_a_prompt_is_decoded_by_a_dllm_folder_and_an_onnx_file(site: Path, tmp_path: Path) -> None:
    released = site / "components" / "released"
    policies = ["--policy", str(released / "policy.onnx"), "--policy", "threshold:0.9"]
    done = run(site, tmp_path, "decode", PROMPT, "--model", str(released / "dllm"), *policies)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"forward pass(?:es)?, (?:right|wrong)", done.stdout)) == 2, done.stdout
    done = run(
        site, tmp_path, "decode", "M..3.2.....1...4.", "--model", str(released / "dllm"), "--task", "sudoku_many"
    )
    assert "the prompt has no right answer" in done.stdout, done.stderr
    assert not [*tmp_path.iterdir()]


# Canvases over 126,464 tokens take half a minute and show nothing of the wheel.
SMALL_BENCH = """
import sys
from components.bench import single
single.CASES = single.CASES[:1]
sys.argv = ["unmask", "bench", "--random", "8", "--count", "4", "--repeats", "1", "--seconds", "1"]
from components.cli import main
main()
"""


def test_the_benchmark_of_a_random_dllm_and_the_doctor_need_no_repository(site: Path, tmp_path: Path) -> None:
    done = python(site, tmp_path, "-c", SMALL_BENCH)
    assert done.returncode == 0 and "126,464" not in done.stdout, done.stderr
    done = run(site, tmp_path, "doctor")
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
    assert "installation: library" in done.stdout and "no repository in this folder" in done.stdout
    assert not [*tmp_path.iterdir()]


def test_the_doctor_judges_an_installation_without_the_pipeline(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "doctor", absent=("dvc", "mlflow", "prefect"))
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
    assert re.search(r"ok   dvc: dvc is not installed; .*pip install .*pipeline", done.stdout)


def test_a_missing_extra_is_one_line_with_its_pip_command(site: Path, tmp_path: Path) -> None:
    released = site / "components" / "released"
    words = ["decode", PROMPT, "--model", str(released / "dllm"), "--policy", str(released / "policy.onnx")]
    done = run(site, tmp_path, *words, absent=("onnx", "onnxruntime", "onnxscript"))
    assert done.returncode == 1 and re.fullmatch(r"unmask: [^\n]*pip install [^\n]*\[onnx\][^\n]*\n", done.stderr)
    assert has_remedy(done.stderr)


@pytest.mark.parametrize("words", [("train",), ("decode", PROMPT), ("bench",)])
def test_what_needs_a_repository_says_so_in_one_line(site: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(site, tmp_path, *words)
    assert done.returncode == 1 and re.fullmatch(r"unmask: [^\n]*inside the repository[^\n]*\n", done.stderr)
