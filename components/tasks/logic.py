"""Logic and constraints, over reasoning-gym: knights and knaves (one answer), queens and graph colouring (many).

In the two with many answers some positions are tied (queens that attack each other, joined vertices) and some are
independent. Left out for their cost: futoshiki (105 ms an item) and zebra puzzles (69 ms).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from components.core.errors import DataError, SettingsError
from components.tasks import gym
from components.tasks.example import Example, Score, address, canvas_for, cut, matching

OPERATORS = {"and": "&", "or": "|", "->": ">", "<=>": "="}


def encode_statement(statement: Any) -> str:
    """Three characters, prefix notation, filled with '.': 'a..' = a is a knight, 'A..' = a is a knave, '!A.' = it is
    not so that a is a knave, '&aB' = a is a knight and b a knave; | is or, > if-then, = if and only if."""
    match statement:
        case ("telling-truth" | "lying" as claim, person):
            return (chr(97 + person) if claim == "telling-truth" else chr(65 + person)) + ".."
        case ("not", inner):
            return "!" + encode_statement(inner)[0] + "."
        case (word, left, right):
            return OPERATORS[word] + encode_statement(left)[0] + encode_statement(right)[0]
    raise AssertionError(f"{statement} is deeper or wider than was asked for")


def worlds(statements: str, people: int) -> list[str]:
    """All assignments ('1' knight, '0' knave, one character per person) under which each person's three-character
    statement is true just if the person is a knight. Truth tables are integers with one bit per assignment."""
    everything = (1 << (1 << people)) - 1
    knight = [sum(1 << world for world in range(1 << people) if world >> person & 1) for person in range(people)]

    def table(code: str) -> int:
        atoms = [knight[ord(c) - 97] if c.islower() else everything ^ knight[ord(c) - 65] for c in code if c.isalpha()]
        match code[0]:
            case "!":
                return everything ^ atoms[0]
            case "&":
                return atoms[0] & atoms[1]
            case "|":
                return atoms[0] | atoms[1]
            case ">":
                return (everything ^ atoms[0]) | atoms[1]
            case "=":
                return everything ^ atoms[0] ^ atoms[1]
        return atoms[0]

    possible = everything
    for person in range(people):
        possible &= everything ^ knight[person] ^ table(statements[3 * person : 3 * person + 3])
    found = [world for world in range(1 << people) if possible >> world & 1]
    return ["".join("01"[world >> person & 1] for person in range(people)) for world in found]


@dataclass(frozen=True, kw_only=True)
class KnightsKnaves:
    """'K' and three characters per person (``encode_statement``); the answer is one bit per person, '1' a knight.

    Statements come from reasoning-gym's sampler, the uniqueness of the answer from a truth table (its own brute force
    takes milliseconds), the verdict from its verifier. Dense: share of people who are told right.
    """

    name: str = "knights_knaves"
    marker: str = "K"
    people: int = 6

    def __post_init__(self) -> None:
        if not 2 <= self.people <= 10:
            raise SettingsError(
                f"people={self.people}: a puzzle needs at least 2, and its truth table 2^people bits; use 2 to 10"
            )

    @property
    def canvas_length(self) -> int:
        return canvas_for(self.people)

    @property
    def alphabet(self) -> str:
        people = "".join(chr(97 + person) for person in range(self.people))
        return "".join(dict.fromkeys(self.marker + people + people.upper() + ".!&|>=01"))

    def sample(self, index: int, seed: int) -> Example:
        from reasoning_gym.logic.knights_knaves import KKProblemSampler

        sampler = KKProblemSampler(address("knights_knaves", seed, index), self.people)
        for _ in range(10_000):
            statements = "".join(map(encode_statement, sampler.sample()))
            found = worlds(statements, self.people)
            if len(found) == 1:
                return Example(self.name, self.marker + statements, found[0])
        raise DataError(
            f"no puzzle with one answer in 10000 draws (seed {seed}, index {index}): with {self.people} people such "
            "puzzles are too rare to sample; ask for fewer people"
        )

    def score(self, text: str, example: Example) -> Score:
        text, gold = cut(text), example.answer
        said, truth = (
            ", and ".join(f"p{i} is a {'knight' if bit == '1' else 'knave'}" for i, bit in enumerate(bits))
            for bits in (text, gold)
        )
        verdict = gym.dataset("knights_knaves").score_answer(said, {"answer": truth})
        correct = verdict == 1.0 and set(text) <= {"0", "1"}
        return Score(float(correct), matching(text, gold))


@dataclass(frozen=True, kw_only=True)
class Queens:
    """'Q' and, per row of the board, the column of its queen or '.': place the missing queens so that none attack each
    other. reasoning-gym's boards; any completion is correct.

    Dense: share of rows whose queen is on the board, keeps the given column and attacks no other; over the longer of
    board and text. The rules are checked here: the verifier wants all solutions listed in the item and runs ``eval``
    on a text.
    """

    name: str = "n_queens"
    marker: str = "Q"
    size: int = 8
    min_remove: int = 5
    max_remove: int = 7

    def __post_init__(self) -> None:
        if not (4 <= self.size <= 9 and 1 <= self.min_remove <= self.max_remove <= self.size):
            raise SettingsError(
                f"size={self.size}, min_remove={self.min_remove}, max_remove={self.max_remove}: no board can be drawn "
                "(a column is one character); use 4 <= size <= 9 and 1 <= min_remove <= max_remove <= size"
            )

    @property
    def canvas_length(self) -> int:
        return canvas_for(self.size)

    @property
    def alphabet(self) -> str:
        return self.marker + "." + "123456789"[: self.size]

    def sample(self, index: int, seed: int) -> Example:
        remove = {"min_remove": self.min_remove, "max_remove": self.max_remove}
        item = gym.dataset("n_queens", n=self.size, **remove)[address("n_queens", seed, index)]
        board = "".join(str(row.index("Q") + 1) if "Q" in row else "." for row in item["metadata"]["puzzle"])
        answer = "".join(str(row.split().index("Q") + 1) for row in item["answer"].split("\n"))
        return Example(self.name, self.marker + board, answer, {"removed": item["metadata"]["num_removed"]})

    def score(self, text: str, example: Example) -> Score:
        text, clues = cut(text), example.prompt[1:]
        columns = {row: int(c) for row, c in enumerate(text) if c in "123456789"[: self.size]}
        good = sum(
            clue in (".", text[row : row + 1])
            and row in columns
            and all(
                columns[row] != column and abs(columns[row] - column) != abs(row - other)
                for other, column in columns.items()
                if other != row
            )
            for row, clue in enumerate(clues)
        )
        dense = good / max(len(clues), len(text))
        return Score(float(dense == 1.0), dense)


@dataclass(frozen=True, kw_only=True)
class GraphColor:
    """'G' and a bit per pair of vertices (01, 02, ..., 12, ...): '1' where they are joined. The answer is one colour
    per vertex; any colouring in which joined vertices differ is correct.

    Graphs and verdict are reasoning-gym's; the answer given is a random colouring, not its greedy one, so that a model
    trained on it sees many. Dense: share of vertices with a colour that no joined vertex has; over the longer of graph
    and text.
    """

    name: str = "graph_color"
    marker: str = "G"
    vertices: int = 8
    colors: int = 3
    edge_probability: float = 0.35

    def __post_init__(self) -> None:
        if not (2 <= self.vertices <= 16 and 2 <= self.colors <= 9 and 0 <= self.edge_probability < 1):
            raise SettingsError(
                f"vertices={self.vertices}, colors={self.colors}, edge_probability={self.edge_probability}: the prompt "
                "has a character per pair and a colour is one character; use 2 to 16 vertices, 2 to 9 colors and "
                "0 <= edge_probability < 1"
            )

    @property
    def canvas_length(self) -> int:
        return canvas_for(self.vertices)

    @property
    def alphabet(self) -> str:
        return "".join(dict.fromkeys(self.marker + "01" + "123456789"[: self.colors]))

    def sample(self, index: int, seed: int) -> Example:
        from reasoning_gym.algorithmic.graph_color import generate_random_graph

        rng = random.Random(address("graph_color", seed, index))
        for _ in range(1000):
            edges = set(generate_random_graph(rng, self.vertices, self.edge_probability)[1])
            colors = _coloring(self.vertices, edges, "123456789"[: self.colors], rng)
            if colors is not None:
                bits = "".join("01"[pair in edges] for pair in combinations(range(self.vertices), 2))
                return Example(self.name, self.marker + bits, "".join(colors), {"edges": len(edges)})
        raise DataError(
            f"no graph with a colouring in 1000 draws (seed {seed}, index {index}): so dense graphs rarely have one; "
            "lower edge_probability or allow more colors"
        )

    def score(self, text: str, example: Example) -> Score:
        text, bits = cut(text), example.prompt[1:]
        edges = [pair for pair, bit in zip(combinations(range(self.vertices), 2), bits, strict=True) if bit == "1"]
        palette = "123456789"[: self.colors]
        puzzle = {"vertices": list(range(self.vertices)), "edges": edges, "color_options": list(map(int, palette))}
        answer = {str(vertex): int(c) for vertex, c in enumerate(text) if c in palette}
        verdict = gym.dataset("graph_color").score_answer(json.dumps(answer), {"metadata": {"puzzle": puzzle}})

        clashing = {vertex for u, v in edges for vertex in (u, v) if text[u : u + 1] == text[v : v + 1]}
        good = sum(c in palette and vertex not in clashing for vertex, c in enumerate(text[: self.vertices]))
        correct = verdict == 1.0 and len(text) == self.vertices
        return Score(float(correct), good / max(self.vertices, len(text)))


def _coloring(vertices: int, edges: set[tuple[int, int]], palette: str, rng: random.Random) -> list[str] | None:
    """A random proper colouring by backtracking in a random order of vertices, or None."""
    order, colors = rng.sample(range(vertices), vertices), [""] * vertices

    def place(depth: int) -> bool:
        if depth == vertices:
            return True
        vertex = order[depth]
        taken = {colors[v if u == vertex else u] for u, v in edges if vertex in (u, v)}
        for color in rng.sample(palette, len(palette)):
            if color not in taken:
                colors[vertex] = color
                if place(depth + 1):
                    return True
        colors[vertex] = ""
        return False

    return colors if place(0) else None
