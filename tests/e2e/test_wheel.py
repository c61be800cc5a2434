"""An installed wheel in an empty folder: what needs no repository works there, the rest is refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.messages import has_remedy
from tests.wheel import build_wheel, copy_source

pytestmark = pytest.mark.e2e
PROMPT = "W.1...4..4..1..3."
# As if the extra were not installed, for who imports it and for who only asks whether it is there.
WITHOUT = """
import importlib.util, sys
find_spec = importlib.util.find_spec

def is_absent(name):
    return name.partition(".")[0] in {absent!r}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if is_absent(name):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

importlib.util.find_spec = lambda name, package=None: None if is_absent(name) else find_spec(name, package)
sys.meta_path.insert(0, Absent())
sys.argv = ["unmask", *{words!r}]
from unmask_policies.cli import main
main()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder / "site"]
    subprocess.run([*pip, build_wheel(folder)], check=True)
    return folder / "site"


def run(
    site: Path, folder: Path, *words: str, absent: tuple[str, ...] = (), command: Sequence[str | Path] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80"}
    command = command or (
        ["-c", WITHOUT.format(absent=set(absent), words=list(words))] if absent else [site / "bin" / "unmask", *words]
    )
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


# Imports every module of the wheel in a folder in which `components` and `flows` are someone else's.
EVERY = """
import pkgutil, sys
from importlib import import_module
import unmask_policies

names = [found.name for found in pkgutil.walk_packages(unmask_policies.__path__, "unmask_policies.")]
for name in names:
    if not name.endswith("__main__"):
        import_module(name)
print(len(names), "components" in sys.modules, unmask_policies.__file__)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of someone else's, whose modules have the names of this repository's folders."""
    for name in ("components", "flows"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('of someone else')\n", encoding="utf-8")
    return tmp_path


def test_every_module_of_the_wheel_works_beside_folders_of_the_same_names(site: Path, elsewhere: Path) -> None:
    done = run(site, elsewhere, command=["-c", EVERY])
    count, taken, file = done.stdout.split()
    assert int(count) > 150 and (taken, file) == ("False", str(site / "unmask_policies" / "__init__.py"))
    assert run(site, elsewhere, command=["-m", "unmask_policies.cli", "demo"]).returncode == 0


def test_the_demo_needs_none_of_the_pipelines_tools(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "demo", absent=("dvc", "mlflow", "prefect", "matplotlib"))
    assert done.returncode == 0 and re.search(r"learned policy +\d+\.\d % right", done.stdout), done.stderr
    assert not [*tmp_path.iterdir()]


def test_an_editable_install_has_the_library_by_both_names(tmp_path: Path) -> None:
    """pip's own: the wheel that it would install holds the path of the repository, and no module."""
    copy = copy_source(tmp_path)
    code = "from setuptools.build_meta import build_editable as build; import sys; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=copy, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        (path,) = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert path.endswith(".pth") and wheel.read(path).decode().strip() == str(copy)


def test_a_prompt_is_decoded_by_a_dllm_folder_and_an_onnx_file(site: Path, tmp_path: Path) -> None:
    released = site / "unmask_policies" / "released"
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
from unmask_policies.bench import single
single.CASES = single.CASES[:1]
sys.argv = ["unmask", "bench", "--random", "8", "--count", "4", "--repeats", "1", "--seconds", "1"]
from unmask_policies.cli import main
main()
"""


def test_the_benchmark_of_a_random_dllm_and_the_doctor_need_no_repository(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, command=["-c", SMALL_BENCH])
    assert done.returncode == 0 and "126,464" not in done.stdout, done.stderr
    done = run(site, tmp_path, "doctor")
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
    assert "installation: library" in done.stdout and "no repository in this folder" in done.stdout
    assert not [*tmp_path.iterdir()]


def test_the_doctor_judges_an_installation_without_the_pipeline(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "doctor", absent=("dvc", "mlflow", "prefect"))
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
    assert re.search(r"ok   dvc: dvc, which stages need, is not installed\. Run .*pip install .*pipeline", done.stdout)


def test_a_missing_extra_is_one_line_with_its_pip_command(site: Path, tmp_path: Path) -> None:
    released = site / "unmask_policies" / "released"
    words = ["decode", PROMPT, "--model", str(released / "dllm"), "--policy", str(released / "policy.onnx")]
    done = run(site, tmp_path, *words, absent=("onnx", "onnxruntime", "onnxscript"))
    assert done.returncode == 1 and re.fullmatch(r"unmask: [^\n]*pip install [^\n]*\[onnx\][^\n]*\n", done.stderr)
    assert has_remedy(done.stderr)


@pytest.mark.parametrize("words", [("train",), ("decode", PROMPT), ("bench",)])
def test_what_needs_a_repository_says_so_in_one_line(site: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(site, tmp_path, *words)
    assert done.returncode == 1 and re.fullmatch(r"unmask: [^\n]*inside the repository[^\n]*\n", done.stderr)
