"""dvc.yaml against the code: one stage, one sub-command, one function; what a stage reads is what it depends on.

A stage whose dependencies are too few is not run again when it should be; that shows nowhere but here.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import typer.main
import yaml

from components import cli
from components.settings import Models, Ood, Settings, Transfer, read
from components.stages.common.runfile import code_of

ROOT = Path(__file__).parents[2]
GRAPH: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = GRAPH["stages"]
PARAMS = read(ROOT / "params.yaml")
TOOLS = {"promote", "rollback", "decode", "compare", "bench", "doctor"}
EXEMPT = (
    # A change of these does not change what a stage computes. Settings reach it as params.
    "components/settings",
    "components/tracking",
    "components/cli.py",
    "components/stages/common/progress.py",
    "components/stages/common/runfile.py",
)
COMMANDS: Mapping[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009 (no attribute of Command)


def module_of(stage: str) -> str:
    return f"components.stages.{'transfer' if stage == 'ood' else stage}"


def function_of(stage: str) -> Any:
    return getattr(import_module(module_of(stage)), stage)


def cells(profile: str) -> Iterator[SimpleNamespace]:
    """Every stage of the graph as DVC would resolve it, a matrix cell by cell: name, deps, outs."""
    for name, stage in STAGES.items():
        items: list[dict[str, str]] = [{}]
        for key, values in stage.get("matrix", {}).items():
            items = [item | {key: value} for item in items for value in values]
        for item in items:
            marks = {"${profile}": profile} | {f"${{item.{key}}}": value for key, value in item.items()}
            outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
            outs = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
            yield SimpleNamespace(
                name="@".join([name, *item.values()]),
                deps=[fill(text, marks) for text in stage["deps"]],
                outs=[fill(text, marks) for text in outs],
            )


def fill(text: str, marks: Mapping[str, str]) -> str:
    for mark, value in marks.items():
        text = text.replace(mark, value)
    assert "$" not in text, f"{text}: this test does not know what that stands for"
    return text


def within(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_stage_is_a_sub_command_is_a_function() -> None:
    assert set(STAGES) == set(COMMANDS) - TOOLS
    for name in STAGES:
        assert inspect.isfunction(function_of(name)) and function_of(name).__name__ == name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_sub_command_with_its_matrix_as_options(name: str) -> None:
    keys = list(STAGES[name].get("matrix", {}))
    assert STAGES[name]["cmd"] == " ".join([f"unmask {name}", *(f"--{key} ${{item.{key}}}" for key in keys)])
    assert [p.name for p in COMMANDS[name].params] == keys
    assert set(keys) <= set(inspect.signature(function_of(name)).parameters)


@pytest.mark.parametrize(
    ("stage", "key", "section"), [("pretrain", "model", Models), ("transfer", "case", Transfer), ("ood", "case", Ood)]
)
def test_a_matrix_has_the_values_that_the_option_takes_and_the_settings_name(
    stage: str, key: str, section: Any
) -> None:
    choices = get_type_hints(getattr(cli, stage))[key]
    assert STAGES[stage]["matrix"][key] == [choice.value for choice in choices] == list(section.model_fields)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_the_params_that_its_signature_names(name: str) -> None:
    sections = [p for p in inspect.signature(function_of(name)).parameters if p in Settings.model_fields]
    assert STAGES[name]["params"] == ["profile", *(f"profiles.${{profile}}.{section}" for section in sections)]


# --- dependencies ---------------------------------------------------------------------------------------------------


def files_of(module: str) -> list[str]:
    """The file of a module and the __init__ files above it; none if there is no such module."""
    path = ROOT / Path(*module.split("."))
    own = [f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()]
    above = [ROOT / Path(*module.split(".")[:i]) / "__init__.py" for i in range(1, module.count(".") + 1)]
    return [f.relative_to(ROOT).as_posix() for f in (*own, *above) if f.exists()] if own else []


def imports_of(file: str) -> Iterator[str]:
    """The files that a file imports, at its head or inside a function; of ours alone."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "components":
                yield from files_of(name)


def closure(module: str) -> set[str]:
    """Every file that is read when the module runs; what is exempt is not looked into, nor what is only a docstring."""
    found: set[str] = set()
    ahead = files_of(module)
    while ahead:
        file = ahead.pop()
        says = len(ast.parse((ROOT / file).read_text()).body) > 1
        if file not in found and says and not any(within(file, exempt) for exempt in EXEMPT):
            found.add(file)
            ahead += imports_of(file)
    return found


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_imports_is_among_its_dependencies(name: str) -> None:
    deps = [dep for dep in STAGES[name]["deps"] if dep.startswith("components/")]
    bare = sorted(f for f in closure(module_of(name)) if not any(within(f, dep) for dep in deps))
    assert not bare, f"stage {name} imports, but does not depend on: {', '.join(bare)}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_no_code_that_it_does_not_import(name: str) -> None:
    read_by_it = closure(module_of(name))
    deps = [dep for dep in STAGES[name]["deps"] if dep.startswith("components/")]
    idle = [dep for dep in deps if not any(within(file, dep) for file in read_by_it)]
    assert not idle, f"stage {name} depends on, but does not import: {', '.join(idle)}"
    assert len(set(deps)) == len(deps)


def test_a_checkpoint_is_taken_up_by_the_code_that_wrote_it_alone() -> None:
    """The identity of a training covers all code that the stage imports."""
    code = [path.relative_to(ROOT).as_posix() for path in code_of("train")]
    assert not [f for f in closure("components.stages.train") if not any(within(f, part) for part in code)]
    assert all((ROOT / part).exists() for part in code)


@pytest.mark.parametrize("profile", PARAMS.profiles)
def test_every_dependency_exists_or_is_made_by_a_stage(profile: str) -> None:
    made = [out for cell in cells(profile) for out in cell.outs]
    for cell in cells(profile):
        for dep in cell.deps:
            if dep.startswith("outputs/"):
                assert any(within(dep, out) for out in made), f"{cell.name}: nobody makes {dep}"
            else:
                assert (ROOT / dep).exists(), f"{cell.name}: {dep} does not exist"


@pytest.mark.parametrize("profile", PARAMS.profiles)
def test_the_graph_has_no_cycle_and_ends_in_the_report(profile: str) -> None:
    all_cells = list(cells(profile))
    before = {
        cell.name: {other.name for other in all_cells for dep in cell.deps for out in other.outs if within(dep, out)}
        for cell in all_cells
    }
    order = list(TopologicalSorter(before).static_order())  # raises CycleError
    assert len(order) == len(all_cells) == 14
    reached = {"report"}
    for name in reversed(order):
        reached |= before[name] if name in reached else set()
    assert reached == set(order)


def test_no_two_stages_write_to_one_place_whatever_the_profile() -> None:
    places = [(profile, cell.name, out) for profile in PARAMS.profiles for cell in cells(profile) for out in cell.outs]
    for one in places:
        for other in places:
            assert one is other or not within(one[2], other[2]), f"{one} lies in {other}"
    for profile, _, out in places:
        assert within(out, f"outputs/{profile}")


@pytest.mark.parametrize("profile", PARAMS.profiles)
def test_a_stage_that_opens_a_dllm_depends_on_whichever_the_settings_may_name(profile: str) -> None:
    models = {f"outputs/{profile}/pretrain/{name}" for name in Models.model_fields}
    for cell in cells(profile):
        if "components/denoisers" in cell.deps and not cell.name.startswith("pretrain"):
            assert models <= set(cell.deps), cell.name


# --- what DVC shows -------------------------------------------------------------------------------------------------


def test_every_cell_has_a_metrics_file_of_its_own_name() -> None:
    for cell in cells("tiny"):
        if cell.name != "report":
            assert f"outputs/tiny/metrics/{cell.name.replace('@', '-')}.json" in cell.outs


def test_every_output_is_cached_so_that_a_run_is_remembered_and_a_rerun_leaves_git_clean() -> None:
    for stage in STAGES.values():
        for out in (*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])):
            options = next(iter(out.values())) if isinstance(out, dict) else {}
            assert options.get("cache", True) is True


def test_plots_are_drawn_from_files_that_a_stage_writes() -> None:
    made = {out for cell in cells("tiny") for out in cell.outs}
    drawn = {fill(path, {"${profile}": "tiny"}) for plot in GRAPH["plots"] for name in plot for path in plot[name]["y"]}
    assert drawn and drawn <= made
    templates = [plot["template"] for p in STAGES["report"]["plots"] for plot in p.values() if "template" in plot]
    assert all((ROOT / template).exists() for template in templates)
