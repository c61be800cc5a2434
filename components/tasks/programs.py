"""Data sets whose answers are programs: HumanEval and MBPP to be measured on, KodCode to learn from.

A text is right if its program passes the data set's own tests, in a confined process (``sandbox``). leave_out: rows
that cannot be scored are skipped and counted, instead of refused.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator

from ..core.errors import DataError, SettingsError
from . import checkers, rows, sandbox
from .example import Example
from .hub import TextTask
from .rows import Row

ASK_BODY = "Complete this Python function. Answer with one ```python block that holds the whole function.\n\n"
ASK_FUNCTION = "Write a Python function. Answer with one ```python block that holds it and all that it needs.\n\n"


def humaneval(
    *,
    name: str = "humaneval",
    canvas_length: int = 256,
    test_path: str | None = None,
    execute: bool = False,
    leave_out: bool = False,
    allow_unconfined: bool = False,
    seconds: float = 5.0,
) -> TextTask:
    """Functions to complete; right if the data set's own tests pass. It has a test file only. See ``_runner``."""
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        ask=ASK_BODY,
        test_path=test_path,
        leave_out=leave_out,
        test_hub=("openai/openai_humaneval",),
        read=_read_humaneval,
        check=_runner(name, execute, allow_unconfined, seconds),
        same=_same,
    )


def _read_humaneval(task: str, row: Row) -> Example:
    question, entry, check = rows.text(row, "prompt"), rows.text(row, "entry_point"), rows.text(row, "test")
    head, definition, _ = question.rpartition(f"def {entry}(")  # imports and helpers that a whole function may rely on
    if not entry.isidentifier() or not definition or "def check(" not in check:
        raise DataError(f"entry_point={entry[:60]!r} is not defined by the prompt and checked. Repair the row.")
    tests = f"{rows.checking(check, 'test')}\ncheck({entry})\n"
    answer = f"```python\n{question}{rows.text(row, 'canonical_solution')}\n```"
    return Example(
        task,
        f"{ASK_BODY}```python\n{question}```",
        answer,
        {"question": question, "head": head, "entry": entry, "tests": tests},
    )


def mbpp(
    *,
    name: str = "mbpp",
    canvas_length: int = 256,
    train_path: str | None = None,
    test_path: str | None = None,
    shots: int = 0,
    shots_path: str | None = None,
    execute: bool = False,
    leave_out: bool = False,
    allow_unconfined: bool = False,
    seconds: float = 5.0,
) -> TextTask:
    """Functions to write (the sanitized edition); right if the data set's own tests pass. See ``_runner``.

    shots: worked examples in front, 3 in paper A, from the data set's own split for them.
    """
    hub = ("google-research-datasets/mbpp", "sanitized")
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        ask=ASK_FUNCTION,
        train_path=train_path,
        test_path=test_path,
        leave_out=leave_out,
        train_hub=hub,
        test_hub=hub,
        shots=shots,
        shots_path=shots_path,
        read=_read_mbpp,
        check=_runner(name, execute, allow_unconfined, seconds),
        same=_same,
    )


def _read_mbpp(task: str, row: Row) -> Example:
    """Its question is the sentence with the tests: MBPP asks some sentences twice, of functions with other names."""
    sentence, code = rows.text(row, "prompt"), rows.text(row, "code")
    asserts = rows.checking("\n".join(rows.texts(row, "test_list")), "test_list")
    imports = rows.texts(row, "test_imports") if row.get("test_imports") is not None else []
    question = f"{sentence}\n\nIt must pass these tests:\n{asserts}"
    used, names = rows.names(code, asserts)
    metadata = {"question": question, "tests": asserts, "imports": "\n".join([*used, *imports]), "names": names}
    return Example(task, f"{ASK_FUNCTION}{question}", f"```python\n{code}\n```", metadata)


def kodcode(
    *,
    name: str = "kodcode",
    canvas_length: int = 256,
    train_path: str | None = None,
    test_path: str | None = None,
    execute: bool = False,
    leave_out: bool = False,
    allow_unconfined: bool = False,
    seconds: float = 5.0,
) -> TextTask:
    """Functions to write, made for reinforcement learning (KodCode-Light-RL-10K); its train file is all there is.

    leave_out: also those whose tests need pytest or other packages. See ``_runner``.
    """
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        ask=ASK_FUNCTION,
        train_path=train_path,
        test_path=test_path,
        train_hub=("KodCode/KodCode-Light-RL-10K",),
        leave_out=leave_out,
        read=_read_kodcode,
        check=_runner(name, execute, allow_unconfined, seconds),
        same=_same,
    )


def _read_kodcode(task: str, row: Row) -> Example:
    """The declarations of the functions belong to the question: the tests call them by name."""
    asked, code = rows.text(row, "question"), rows.text(row, "solution")
    tests, imported = _script(rows.checking(rows.text(row, "test"), "test"))
    _, names = rows.names(code, tests)
    if not set(imported) <= set(names):
        raise DataError(f"its tests import {imported}, its solution defines {names}. Repair the row, or remove it.")
    info = row.get("test_info") or []
    heads = [str(part["function_declaration"]) for part in info if part.get("function_declaration")]
    question = f"{asked}\n\nIt begins:\n" + "\n".join(heads) if heads else asked
    metadata = {"question": question, "tests": tests, "imports": "", "names": names}
    return Example(task, f"{ASK_FUNCTION}{question}", f"```python\n{code}\n```", metadata)


def _same(one: Example, other: Example) -> bool:
    """One problem, whatever its words: the tests are the same."""
    return one.metadata["tests"] == other.metadata["tests"]


def _script(tests: str) -> tuple[str, list[str]]:
    """A pytest file as a script that runs all its tests, and the names that it imports from the solution.

    DataError where a test would be left out, or could not run: it is in a class, takes fixtures, or needs a package.
    """
    kept: list[ast.stmt] = []
    names, calls = list[str](), list[str]()
    for node in ast.parse(tests).body:
        if isinstance(node, ast.ImportFrom) and node.module == "solution":
            names += [alias.asname or alias.name for alias in node.names if alias.name != "*"]
            continue
        if packages := [name for name in _imports(node) if name not in sys.stdlib_module_names]:
            raise DataError(f"its tests import {packages}, which a confined program has not. Remove the row.")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and _is_test(node):
            if isinstance(node, ast.FunctionDef) and not node.decorator_list and not ast.unparse(node.args):
                calls.append(f"{node.name}()")
            else:
                raise DataError(f"its test {node.name} is no plain function without arguments. Remove the row.")
        kept.append(node)
    if not calls and not any(isinstance(node, ast.Assert) for node in kept):
        raise DataError("none of its tests would run. Remove the row.")
    return "\n".join([*map(ast.unparse, kept), *calls]), names


def _imports(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            yield (part.module or "").partition(".")[0]


def _is_test(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """True for what pytest collects."""
    cases = isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("TestCase") for base in node.bases)
    return cases or node.name.startswith("Test" if isinstance(node, ast.ClassDef) else "test")


def _runner(task: str, execute: bool, allow_unconfined: bool, seconds: float) -> Callable[[str, Example], bool]:
    """The check that runs a text's program with the example's tests, in a confined process, for at most ``seconds``.

    Raises:
        SettingsError: ``execute`` is false; or programs cannot be confined here and ``allow_unconfined`` is false.
    """
    if not execute:
        raise SettingsError(
            f"task {task} was asked for with execute=False: its answers are programs, which are scored by running "
            "them. Pass execute=True to run model-written programs in a confined process, or take another task."
        )
    sandbox.way(allow_unconfined)  # refuse now rather than at the first score

    def check(text: str, example: Example) -> bool:
        if not text.strip():
            return False
        program, tests = assemble(text, example), tests_of(example)
        return sandbox.run(program, tests, seconds=seconds, allow_unconfined=allow_unconfined).passed

    return check


def assemble(text: str, example: Example) -> str:
    """The program to run: the text's, after the prompt's head if it is a whole function, or after the whole prompt if
    it only goes on from there."""
    code, metadata = checkers.program_in(text), example.metadata
    if "entry" not in metadata:
        return code
    whole = f"def {metadata['entry']}(" in code
    return (metadata["head"] if whole else metadata["question"]) + code


def tests_of(example: Example) -> sandbox.Checks:
    """The example's tests. They take from the program only what it was asked for, so that it replaces no helper."""
    metadata = example.metadata
    if "entry" in metadata:
        return sandbox.Checks(metadata["tests"], metadata["head"], [metadata["entry"]])
    return sandbox.Checks(metadata["tests"], metadata["imports"], metadata["names"])
