"""infra/requirements.lock against pyproject.toml, and who installs from it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "infra" / "requirements.lock").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """Each package's requirement and its hashes."""
    entries = re.findall(r"^([A-Za-z].*?) \\\n((?:    --hash=.*\n)+)", LOCK, re.MULTILINE)
    parsed = [(Requirement(line), re.findall("sha256:([0-9a-f]{64})", hashes)) for line, hashes in entries]
    return {canonicalize_name(need.name): (need, hashes) for need, hashes in parsed}


def test_every_dependency_is_locked_to_one_version_within_its_bounds() -> None:
    wanted = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    needs = [need for need in map(Requirement, wanted) if need.name != PROJECT["name"]]
    assert needs
    for need in needs:
        (pinned,) = locked()[canonicalize_name(need.name)][0].specifier
        assert pinned.operator == "==" and need.specifier.contains(pinned.version), (str(need), str(pinned))


def test_every_locked_package_has_hashes_and_none_is_a_cuda_library() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith(("#", "    --hash="))]
    assert len(lines) == len(locked())  # nothing but requirements with hashes: no address, no option
    assert all(hashes and len(hashes) == len(set(hashes)) for _, hashes in locked().values())
    assert not [name for name in locked() if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_who_uses_the_library_or_the_pipeline_gets_none_of_what_infra_needs() -> None:
    extras = PROJECT["optional-dependencies"]
    infra = {Requirement(line).name for line in extras["infra"]} - {PROJECT["name"]}
    assert {"psycopg2-binary", "boto3", "prefect-kubernetes"} <= infra
    for lines in (PROJECT["dependencies"], extras["onnx"], extras["hub"], extras["pipeline"]):
        assert not infra & {Requirement(line).name for line in lines}
    for folder in ("components", "flows"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(import|from) (psycopg2|boto3|prefect_kubernetes)\b", text, re.MULTILINE), path


def test_what_installs_the_project_installs_the_lock_by_its_hashes() -> None:
    for name in ("Makefile", "infra/Dockerfile"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.search(r"--require-hashes --no-deps -r (infra/)?requirements\.lock", text), name


def test_the_workflow_runs_what_ci_runs_on_pythons_that_the_project_allows() -> None:
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(allowed.contains(version) for version in job["strategy"]["matrix"]["python"])
