"""dvc.yaml against the code: one stage, one sub-command, one function; what a stage reads is what it depends on.

A stage whose dependencies are too few is not run again when it should be; that shows nowhere but here. The graph is
resolved by DVC itself, from the settings of every profile.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from components import cli
from components.settings import Settings, read
from components.stages.common.cases import EvalCase, case_of
from components.stages.common.runfile import code_of
from components.stages.common.workspace import Workspace
from components.stages.prepare import prepare
from tests.graph import Cell, at, resolve, source_of, within
from tests.messages import has_remedy

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
GRAPH: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES: dict[str, dict[str, Any]] = GRAPH["stages"]
RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
PROFILES = {RAW["profile"]: ROOT / "params.yaml"} | {p.stem: p for p in sorted((ROOT / "profiles").glob("*.yaml"))}
TOOLS = {"promote", "rollback", "repair", "demo", "decode", "compare", "bench", "doctor", "lm_eval"}
EXEMPT = (
    # A change of these does not change what a stage computes. Settings reach it as params.
    "components/settings",
    "components/tracking",
    "components/cli",
    "components/stages/common/progress.py",
    "components/stages/common/runfile.py",
)
COMMANDS: Mapping[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009 (no attribute of Command)
GROUPS = {name: "evaluate" if name == "rules" else name.removesuffix("-rules") for name in STAGES if "rules" in name}
"""The stages that run sub-command rules -> the group of the cases that they sweep."""
ON_A_CASE = {*GROUPS, *GROUPS.values()}
"""The stages that work on one case: a dLLM, a task and a split."""


def function_of(stage: str) -> Callable[..., Any]:
    """Stages gate, transfer and ood are stage evaluate on a case of theirs, and all sweeps are one stage."""
    name = "rules" if stage in GROUPS else "evaluate" if stage in ON_A_CASE else stage
    return getattr(import_module(f"components.stages.{name}"), name)


def module_of(stage: str) -> str:
    return function_of(stage).__module__


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Cell]]:
    """profile -> its cells."""
    return {
        name: resolve(tmp_path_factory.mktemp("graph") / name, yaml.safe_load(path.read_text(encoding="utf-8")))
        for name, path in PROFILES.items()
    }


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cells(graphs: dict[str, dict[str, Cell]], profile: str) -> list[Cell]:
    return list(graphs[profile].values())


def case_of_cell(settings: Settings, cell: Cell) -> EvalCase:
    return case_of(settings, GROUPS.get(cell.stage, cell.stage), cell.key)


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_stage_is_a_sub_command_is_a_function() -> None:
    assert {"rules" if name in GROUPS else name for name in STAGES} == set(COMMANDS) - TOOLS
    assert set(GROUPS) == {"rules", "gate-rules", "transfer-rules", "ood-rules"} and set(GROUPS.values()) < set(STAGES)
    for name in STAGES:
        assert inspect.isfunction(function_of(name))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_sub_command_with_the_item_of_its_mapping_as_option(name: str) -> None:
    words = ["unmask", *(["rules", "--group", GROUPS[name]] if name in GROUPS else [name])]
    if "foreach" in STAGES[name]:
        mapping = isinstance(at(RAW, STAGES[name]["foreach"].strip("${}")), dict)
        words += ["--model" if name == "pretrain" else "--case", "${key}" if mapping else "${item}"]
    assert body(name)["cmd"] == " ".join(words)


def test_every_command_of_every_profile_calls_its_function_with_what_the_settings_say(
    profile: str, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function gets the sections that it names, and the case or dLLM that the stage is named after."""
    shutil.copy(PROFILES[profile], tmp_path / "params.yaml")
    settings = read(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    for cell in cells:
        function, calls = function_of(cell.stage), []

        @functools.wraps(function)
        def record(workspace: Workspace, *, calls: list[Any] = calls, **given: Any) -> dict[str, float]:
            calls.append((workspace.profile, given))
            return {}

        with monkeypatch.context() as patch:
            patch.setattr(import_module(function.__module__), function.__name__, record)
            done = CliRunner().invoke(cli.app, cell.cmd.split()[1:])
        assert done.exit_code == 0, (cell.cmd, done.output, done.exception)
        wanted: dict[str, Any] = {name: getattr(settings, name) for name in sections_of(cell.stage)}
        if cell.stage in ON_A_CASE:
            wanted["case"] = case_of_cell(settings, cell)
        elif cell.key:
            wanted["model" if cell.stage == "pretrain" else "case"] = cell.key
        assert calls == [(profile, wanted)], cell.name


def test_a_name_that_the_settings_do_not_have_is_refused_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for words in (
        "transfer --case longr",
        "ood --case longer",
        "evaluate --case sudoku_may",
        "rules --group transfer",
        "rules --group tansfer --case longer",
        "pretrain --model mini",
        "headroom --case may",
    ):
        monkeypatch.setattr("sys.argv", ["unmask", *words.split()])
        with pytest.raises(SystemExit) as refused:
            cli.main()
        said = capsys.readouterr().err
        assert refused.value.code == 1 and said.startswith("unmask: ") and has_remedy(said), (words, said)


# --- params ---------------------------------------------------------------------------------------------------------


def body(stage: str) -> dict[str, Any]:
    return STAGES[stage].get("do", STAGES[stage])


def sections_of(stage: str) -> list[str]:
    """The sections of the settings that the stage's function names."""
    return [p for p in inspect.signature(function_of(stage)).parameters if p in Settings.model_fields]


RULES_READ = ["decode.end_of_text", "decode.cache"]


def parts(section: str, stage: str) -> list[str]:
    """A section, field by field; of a mapping whose items are stages, the item of this stage.

    Rules decode with the policy's cache, and stop at the end of the text where it does. They read nothing else of
    ``decode``: another policy costs no new sweep.
    """
    if section == "decode" and body(stage)["cmd"].startswith("unmask rules"):
        return RULES_READ
    own = f"{section}.${{key}}"
    if STAGES[stage].get("foreach") == f"${{{section}}}":
        return [own]
    model = Settings.model_fields[section].annotation
    fields = [f"{section}.{name}" for name in getattr(model, "model_fields", {})]
    return [f"{f}.${{key}}" if STAGES[stage].get("foreach") == f"${{{f}}}" else f for f in fields]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_the_params_that_its_signature_names_and_of_its_mapping_its_own_item(name: str) -> None:
    wanted, given = ["profile"], body(name)["params"]
    for section in sections_of(name):
        part = RULES_READ if (name in GROUPS, section) == (True, "decode") else parts(section, name)
        wanted += [section] if section in given else part
    # What case_of reads; the names of evaluate.tasks are those of the stages.
    group = GROUPS.get(name, name)
    wanted += {"gate": ["evaluate.gate_task"], "transfer": ["transfer.${key}"], "ood": ["ood.${key}"]}.get(group, [])
    assert given == wanted


"""What is added to the settings by a user, and the stages that there are then beside those before."""
MORE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a task": ({"data.tasks.new": {"kind": "number_sorting", "params": {}, "canvas": None}}, set()),
    "a third model": (
        {"models.third": {**RAW["models"]["mini-dream"], "rows": {"number_sorting": 8}}},
        {"pretrain@third"},
    ),
    "a transfer case": (
        {"transfer.queens": {"model": "mini-dream", "task": "n_queens"}},
        {"transfer-rules@queens", "transfer@queens"},
    ),
    "an ood case": ({"ood.more": {"model": "mini-llada", "task": "sudoku_easy"}}, {"ood-rules@more", "ood@more"}),
    "a task to measure": (
        {"headroom.cases.more": {"model": "mini-dream", "task": "sudoku_pair"}},
        {"headroom@more"},
    ),
    "a task to evaluate on": (
        {"evaluate.tasks": [*RAW["evaluate"]["tasks"], "sudoku_easy"]},
        {"rules@sudoku_easy", "evaluate@sudoku_easy"},
    ),
}


@pytest.mark.parametrize("what", [*MORE, "all"])
def test_what_is_added_changes_no_other_stage(graphs: dict[str, dict[str, Cell]], tmp_path: Path, what: str) -> None:
    """Neither dependencies nor params, outputs nor command; but prepare draws it, and the report shows it."""
    raw, wanted = copy.deepcopy(RAW), set[str]()
    for changes, names in MORE.values() if what == "all" else [MORE[what]]:
        wanted |= names
        for path, value in changes.items():
            *above, last = path.split(".")
            at(raw, ".".join(above))[last] = value
    Settings.model_validate(raw)
    before, after = graphs[RAW["profile"]], resolve(tmp_path / "more", raw)
    assert set(after) - set(before) == wanted and set(before) <= set(after)
    changed = {name for name, cell in before.items() if after[name] != cell}
    assert changed <= {"prepare", "report"}


# --- dependencies ---------------------------------------------------------------------------------------------------

ON_CASE = {"data/tasks/{task}", "pretrain/{model}"}
READS = {
    "prepare": set(),
    "pretrain": {"data/pretrain/{key}"},
    "headroom": ON_CASE,
    "influence": {"data/domain", "pretrain/{domain}"},
    "distill": {"data/domain", "pretrain/{domain}", "influence"},
    "train": {"data/domain", "pretrain/{domain}", "distill/policy"},
    "export": {"data/domain", "pretrain/{domain}", "train"},
    "report": {"data/domain", "headroom", "train", "evaluate", "export"},
    **{name: ON_CASE for name in GROUPS},
    **{group: ON_CASE | {"influence", "distill/policy", "train", "rules/{stem}"} for group in GROUPS.values()},
}
"""What a stage reads of the outputs of others."""


def test_a_stage_depends_on_the_data_the_dllm_and_the_policies_that_it_reads_and_on_no_others(
    profile: str, cells: list[Cell]
) -> None:
    settings = read(PROFILES[profile])
    for cell in cells:
        marks = {"key": cell.key, "domain": settings.domain.model}
        if cell.stage in ON_A_CASE:
            case = case_of_cell(settings, cell)
            marks |= {"model": case.model, "task": case.task, "stem": case.stem}
        elif cell.stage == "headroom":
            marks |= settings.headroom.cases[cell.key].model_dump()
        assert cell.read == {path.format(**marks) for path in READS[cell.stage]}, cell.name


def test_stage_prepare_makes_every_folder_of_data_that_a_stage_depends_on(tmp_path: Path) -> None:
    """Of a dLLM that is trained elsewhere too. DVC keeps no empty folder, and misses a dependency."""
    raw = copy.deepcopy(RAW)
    raw["data"]["counts"] = {"pretrain": 8, "train": 8, "tune": 8, "gate": 4, "test": 4}
    raw["models"]["elsewhere"] = {
        "source": "some/where",
        "layout": "llada",
        "revision": None,
        "dtype": "float32",
        "rows": {},
    }
    settings, cells = Settings.model_validate(raw), resolve(tmp_path / "graph", raw)
    prepare(Workspace(tmp_path, settings.profile), settings.data, settings.models, settings.domain)
    wanted = {dep for cell in cells.values() for dep in cell.deps if within(dep, f"outputs/{settings.profile}/data")}
    assert len(wanted) >= 10
    for dep in wanted:
        assert [path for path in (tmp_path / dep).rglob("*") if path.is_file()], dep


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
        elif isinstance(node, ast.ImportFrom):
            module = source_of(node, ROOT / file, ROOT)
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
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
    deps = [dep for dep in body(name)["deps"] if dep.startswith("components/")]
    bare = sorted(f for f in closure(module_of(name)) if not any(within(f, dep) for dep in deps))
    assert not bare, f"stage {name} imports, but does not depend on: {', '.join(bare)}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_no_code_that_it_does_not_import(name: str) -> None:
    read_by_it = closure(module_of(name))
    deps = [dep for dep in body(name)["deps"] if dep.startswith("components/")]
    idle = [dep for dep in deps if not any(within(file, dep) for file in read_by_it)]
    assert not idle, f"stage {name} depends on, but does not import: {', '.join(idle)}"
    assert len(set(deps)) == len(deps)


@pytest.mark.parametrize("name", ["influence", "train"])
def test_a_checkpoint_is_taken_up_by_the_code_that_wrote_it_alone(name: str) -> None:
    """The identity of a training covers all code that the stage imports."""
    code = [path.relative_to(ROOT).as_posix() for path in code_of(name)]
    assert not [f for f in closure(module_of(name)) if not any(within(f, part) for part in code)]
    assert all((ROOT / part).exists() for part in code)


def test_every_dependency_exists_or_is_made_by_a_stage(cells: list[Cell]) -> None:
    made = [out for cell in cells for out in cell.outs]
    for cell in cells:
        for dep in cell.deps:
            if dep.startswith("outputs/"):
                assert any(within(dep, out) or within(out, dep) for out in made), f"{cell.name}: nobody makes {dep}"
            else:
                assert (ROOT / dep).exists(), f"{cell.name}: {dep} does not exist"


def test_the_graph_has_no_cycle_and_ends_in_the_report_or_at_the_gate(cells: list[Cell]) -> None:
    """A folder that many stages write into is a dependency on all of them."""
    before = {
        cell.name: {
            other.name
            for other in cells
            for dep in cell.deps
            for out in other.outs
            if within(dep, out) or within(out, dep)
        }
        for cell in cells
    }
    order = list(TopologicalSorter(before).static_order())  # raises CycleError
    assert len(order) == len(cells) == len({cell.name for cell in cells}) and {c.stage for c in cells} <= set(STAGES)
    reached = {"report"}
    for name in reversed(order):
        reached |= before[name] if name in reached else set()
    assert reached == set(order)


def test_no_two_stages_write_to_one_place_whatever_the_profile(graphs: dict[str, dict[str, Cell]]) -> None:
    places = [(profile, cell.name, out) for profile in graphs for cell in graphs[profile].values() for out in cell.outs]
    for one in places:
        for other in places:
            assert one is other or not within(one[2], other[2]), f"{one} lies in {other}"
    for profile, _, out in places:
        assert within(out, f"outputs/{profile}")


@pytest.mark.parametrize("name", PROFILES)
def test_a_file_of_profiles_is_the_profile_that_it_is_named_after(name: str) -> None:
    assert read(PROFILES[name]).profile == name


# --- what DVC shows -------------------------------------------------------------------------------------------------


def test_every_cell_that_measures_has_a_file_of_its_own_name(profile: str, cells: list[Cell]) -> None:
    for cell in cells:
        name = cell.name.replace("@", "-")
        if cell.stage in GROUPS:
            assert cell.outs == [f"outputs/{profile}/rules/{name.replace('-rules', '').replace('rules', 'evaluate')}"]
        elif cell.stage == "headroom":
            assert cell.outs == [f"outputs/{profile}/headroom/{cell.key}.json"]
        elif cell.stage != "report":
            assert f"outputs/{profile}/metrics/{name}.json" in cell.outs


def test_every_output_is_cached_so_that_a_run_is_remembered_but_the_few_figures_that_git_keeps() -> None:
    """An uncached entry of outs would switch DVC's run cache off, one of metrics does not."""
    for name in STAGES:
        for kind in ("outs", "metrics", "plots"):
            for out in body(name).get(kind, []):
                path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
                kept = (kind, path) == ("metrics", "outputs/${profile}/result")
                assert options.get("cache", True) is not kept


def test_plots_are_drawn_from_files_that_a_stage_writes(profile: str, cells: list[Cell]) -> None:
    made = {out for cell in cells for out in cell.outs}
    named = {path for plot in GRAPH["plots"] for name in plot for path in plot[name]["y"]}
    drawn = {path.replace("${profile}", profile) for path in named}
    assert drawn and all(path in made or str(Path(path).parent) in made for path in drawn)
    templates = [plot["template"] for p in STAGES["report"]["plots"] for plot in p.values() if "template" in plot]
    assert all((ROOT / template).exists() for template in templates)
