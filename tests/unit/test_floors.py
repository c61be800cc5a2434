"""The floors of the library: imports run strictly downwards, nothing happens at import, the wheel holds every package,
and the command line answers at once, in one line where it has to refuse."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from components.cli import stages, tools
from components.policies.rules import decoders
from tests.graph import source_of
from tests.messages import has_remedy
from tests.wheel import NAME, PACKAGES, build_wheel

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]

# Lowest first. What stands on one floor does not import its neighbours either.
FLOORS = (
    {"core"},
    {"maths", "tasks", "denoisers"},
    {"policies"},
    {"decode"},
    {"trainers", "evaluation", "export"},
    {"reports", "tracking", "settings", "bench"},
    {"stages"},
    {"commands"},
    {"cli"},
    {"flows"},
)
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}

# Which floors may name a package at all, wherever in a function it is imported.
ONLY_IN = {
    "prefect": {"flows"},
    "dvc": {"flows", "commands"},
    "mlflow": {"tracking", "commands", "flows"},
    "matplotlib": {"reports"},
    "onnxruntime": {"export"},
    "reasoning_gym": {"tasks"},
    "typer": {"cli"},
    "pydantic": {"settings", "flows"},
}

LINES, LENGTH, PARAMETERS = 300, 40, 6  # of a file, of a function, and of a function
# A user fills these parameters in one by one; a dataclass would take the form apart. No others are allowed more.
FORMS = {
    "components/cli/tools.py": {"decode", "compare", "bench"},  # the options of a command
    "components/tasks/programs.py": {"humaneval", "mbpp", "kodcode"},  # `params` of a task in params.yaml
    "components/stages/report.py": {"report"},  # a section of params.yaml each, as in dvc.yaml
    "flows/train_policy.py": {"train_policy"},  # Prefect's form
    "flows/sweep.py": {"sweep"},  # the same
}


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def unit_of(module: str) -> str:
    """The floor's name of a module: components.maths.pareto is on maths, flows.anything on flows."""
    first, *rest = module.split(".")
    return rest[0] if first == "components" and rest else first


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its head or inside a function; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = source_of(node, path, ROOT)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_every_module_stands_on_a_floor() -> None:
    units = {unit_of(name_of(path)) for path in modules()} - {"components"}
    assert units == set(FLOOR)


def test_imports_run_strictly_downwards() -> None:
    broken = []
    for path in modules():
        here = unit_of(name_of(path))
        for module in imported(path):
            there = unit_of(module)
            if module.split(".")[0] in PACKAGES and there != here and FLOOR[there] >= FLOOR[here]:
                broken.append(
                    f"{path.relative_to(ROOT)} ({here}, floor {FLOOR[here]}) imports {module} "
                    f"({there}, floor {FLOOR[there]})"
                )
    assert not broken, "\n".join(broken)


def test_files_and_functions_are_short_and_take_few_parameters() -> None:
    broken = []
    for path in modules():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        broken += [f"{name} has {lines} lines" for lines in [text.count("\n")] if lines > LINES]
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(parameter.arg not in ("self", "cls") for parameter in given)
            if (count > PARAMETERS) != (node.name in FORMS.get(name, set())):
                broken.append(f"{name}: {node.name} takes {count} parameters")
            assert node.end_lineno is not None
            if (length := node.end_lineno - node.lineno + 1) > LENGTH:
                broken.append(f"{name}: {node.name} has {length} lines")
    assert not broken, "\n".join(broken)


def test_each_tool_has_its_own_floors() -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules()
        for module in imported(path)
        if unit_of(name_of(path)) not in ONLY_IN.get(module.split(".")[0], {unit_of(name_of(path))})
    ]
    assert not broken, "\n".join(broken)


def test_nothing_is_unpickled_and_no_remote_code_is_trusted() -> None:
    for path in modules():
        names = {node.arg for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.keyword)}
        assert "trust_remote_code" not in names, path
        assert not {"pickle", "cloudpickle", "dill"} & {module.split(".")[0] for module in imported(path)}, path


# Run in a fresh process. Opening for writing, making folders and asking the network are seen by audit hooks, which a
# root user cannot pass by as he does a read-only folder.
WATCH = """
import importlib, json, os, sys

seen = []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        seen.append(f"{event} {args[1:]}")
        raise OSError("no network here")
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING and str(args[0]) != os.devnull:
        seen.append(f"open {args[0]}")
    if event in ("os.mkdir", "os.rename", "os.remove"):
        seen.append(f"{event} {args[0]}")

sys.addaudithook(watch)
import torch
state = torch.random.get_rng_state()
environment = dict(os.environ)
for name in json.loads(sys.argv[1]):
    before = len(seen)
    importlib.import_module(name)
    if len(seen) > before:
        print(name, seen[before:])
    # lm-evaluation-harness sets how the hub downloads; nothing but its adapter imports it.
    own = name.startswith("components.cli") or name == "components.commands.lm_eval_model"
    if not own and dict(os.environ) != environment:
        print(name, "changes", sorted(set(os.environ.items()) ^ set(environment.items())))
    environment = dict(os.environ)
if not torch.equal(state, torch.random.get_rng_state()):
    print("somebody drew from the global generator")
"""


def test_importing_any_module_of_the_library_writes_nothing_and_asks_nobody(tmp_path: Path) -> None:
    names = [name for name in map(name_of, modules()) if name.startswith("components")]
    folder, home = tmp_path / "empty", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    folder.chmod(0o555)
    environment = {
        **os.environ,
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(home),
        "HF_HOME": str(home),
    }
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(names)],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    assert not [*folder.iterdir()] and not [*home.rglob("*")]


def test_the_wheel_holds_the_library_under_its_one_name_and_nothing_else(tmp_path: Path) -> None:
    names = {name for name in zipfile.ZipFile(build_wheel(tmp_path)).namelist() if ".dist-info/" not in name}
    library = ROOT / "components"
    kept = [p for p in library.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(kept) > 150 and names == {f"{NAME}/{path.relative_to(library).as_posix()}" for path in kept}


def test_the_library_names_itself_by_no_absolute_import() -> None:
    """In the wheel `components` is someone else's."""
    for path in (ROOT / "components").rglob("*.py"):
        tree = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        absolute = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
        absolute += [node.module or "" for node in tree if isinstance(node, ast.ImportFrom) and node.level == 0]
        assert not {name.split(".")[0] for name in absolute} & {*PACKAGES, NAME}, path


# --- the command line -----------------------------------------------------------------------------------------------


def unmask(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`unmask words` in a process of its own."""
    return python(f"import sys; sys.argv = ['unmask', *{list(words)!r}]\nfrom components.cli import main\nmain()", cwd)


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, text=True, capture_output=True, check=False
    )


COMMANDS = [command.__name__ for command in (*stages.COMMANDS, *tools.COMMANDS)]
HEAVY = ("torch", "transformers", "mlflow", "dvc", "prefect", "numpy", "yaml", "matplotlib", "rich.progress")
HELPS = """
import contextlib, io, json, sys
from components.cli import main

said = {}
for words in (["--help"], *([command, "--help"] for command in COMMANDS)):
    sys.argv = ["unmask", *words]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main()
    said[words[0]] = " ".join(text.getvalue().split())
print(json.dumps([said, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], set[str]]:
    """The text of --help by command, and the modules that are loaded after all of them."""
    done = python(f"COMMANDS = {COMMANDS!r}\n{HELPS}", tmp_path_factory.mktemp("helps"))
    assert not done.stderr
    said, loaded = json.loads(done.stdout)
    return said, set(loaded)


def test_help_names_inputs_outputs_and_an_example_and_loads_nothing_heavy(
    helps: tuple[dict[str, str], set[str]],
) -> None:
    said, loaded = helps
    assert not set(HEAVY) & loaded
    assert {"prepare", "decode", "compare", "promote", "doctor"} <= set(COMMANDS)
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", said["--help"])
        assert re.search(rf"In: \S.* Out: \S.* Example: unmask {command}\b", said[command]), said[command]


def test_the_list_of_commands_is_whole_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    words = {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "components.cli", "--help"],
        cwd=tmp_path,
        env=os.environ | words,
        text=True,
        capture_output=True,
        check=True,
    )
    listed = dict(re.findall(r"^  (\w+) {2,}(\S.*)$", done.stdout.partition("Commands:")[2], re.MULTILINE))
    assert list(listed) == COMMANDS and max(map(len, done.stdout.splitlines())) <= 80
    for name, summary in listed.items():
        assert summary.endswith(".") and not summary.endswith("..."), (name, summary)


def test_commands_that_take_a_policy_list_every_rule_with_what_its_number_may_be(
    helps: tuple[dict[str, str], set[str]],
) -> None:
    said, _ = helps
    for command in tools.TAKE_POLICIES:
        for name, rule in decoders().items():
            assert f"{name}{':N' if rule.number else ''} {rule.range}" in said[command.__name__], (command, name)


def test_the_version_is_that_of_the_installed_package(tmp_path: Path) -> None:
    assert unmask("--version", cwd=tmp_path).stdout == f"unmask {metadata.version('unmask-policies')}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("prepare",), "params.yaml cannot be read"),
        (("decode", "M1..............."), "params.yaml cannot be read"),
        (("promote", "--dry-run"), "params.yaml cannot be read"),
    ],
)
def test_outside_the_repository_a_command_refuses_in_one_line(
    words: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    assert_one_line(unmask(*words, cwd=tmp_path), named)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train",), "outputs/tiny/data/domain is not there"),
        (("decode", "M1...............", "--policy", "treshold:0.9"), "did you mean threshold"),
        (("compare", "confidence", "nowhere.onnx", "--prompt", "M1..............."), "nowhere.onnx is not there"),
        (("promote",), "outputs/tiny/train/run.json is not there"),
    ],
)
def test_what_is_missing_or_unknown_is_one_line_on_stderr(words: tuple[str, ...], named: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert_one_line(unmask(*words, cwd=tmp_path), named)


def assert_one_line(said: subprocess.CompletedProcess[str], named: str) -> None:
    assert said.returncode == 1 and not said.stdout, said
    assert re.fullmatch(rf"unmask: [^\n]*{re.escape(named)}[^\n]*\n", said.stderr), said.stderr
    assert has_remedy(said.stderr)


def test_a_word_that_no_command_knows_is_refused_without_a_traceback() -> None:
    said = unmask("trian")
    assert said.returncode == 2 and "trian" in said.stderr and "Traceback" not in said.stderr
