"""``order.html``: how each rule filled the canvas, step by step, the rules beside each other for the same prompt.

One file that asks nobody for anything: the boards are plain HTML (readable without scripts, printable), forty lines of
script move the slider, and the page forbids itself every request. Figures over all prompts are in the table; the page
shows the extremes by name and some prompts as they come.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from components.core.files import write_text
from components.reports.boards import (
    Case,
    Decode,
    box_of,
    cases,
    clues_of,
    columns_of,
    glyph,
    ink_on,
    last_step,
    name_of,
    step_colour,
)


def write(
    path: Path,
    decodes: Sequence[Decode],
    columns: Mapping[str, int] | None = None,
    *,
    extremes: int = 3,
    plain: int = 3,
) -> Path:
    """Writes the page.

    Args:
        decodes: the lines of decodes.jsonl.
        columns: cells per row of a task's board; 16 -> 4, 36 -> 6, 81 -> 9, else one line.
        extremes: how many prompts per task where the learned policy gains most, and where it loses most.
        plain: how many more prompts per task, as they come in the file.

    Errors:
        DataError: a decode lacks a field.
    """
    sections = [
        _task(task, found, columns, extremes, plain, number)
        for number, (task, found) in enumerate(cases(decodes).items())
    ]
    body = "\n".join(sections) or "<p>No decodes were recorded.</p>"
    return write_text(path, Template(_PAGE).substitute(body=body, style=_STYLE, script=_SCRIPT))


def chosen(found: Sequence[Case], extremes: int, plain: int) -> list[tuple[str, list[Case]]]:
    """(heading, prompts): the largest gains, the largest losses, then prompts as they come; none of them twice."""
    by_gain = sorted(found, key=lambda case: case.gain, reverse=True)
    best = [case for case in by_gain if case.gain > (0.0, 0.0)][:extremes]
    worst = [case for case in reversed(by_gain) if case.gain < (0.0, 0.0)][:extremes]
    taken = {case.prompt for case in (*best, *worst)}
    rest = [case for case in found if case.prompt not in taken][:plain]
    parts = [
        ("Where the learned policy gains most", best),
        ("Where it loses most", worst),
        ("Prompts as they come", rest),
    ]
    return [(heading, some) for heading, some in parts if some]


def _task(
    task: str, found: list[Case], columns: Mapping[str, int] | None, extremes: int, plain: int, number: int
) -> str:
    parts = chosen(found, extremes, plain)
    steps = max((last_step(d) for _, some in parts for case in some for d in case.decodes), default=0)
    scale = "".join(
        f'<i style="background:{step_colour(s, steps)};color:{ink_on(step_colour(s, steps))}">{s}</i>'
        for s in range(1, steps + 1, steps // 24 + 1)  # of a long decode a step here and there
    )
    shown = "".join(
        f"<h3>{_text(heading)}</h3>" + "".join(_case(case, columns, steps) for case in some) for heading, some in parts
    )
    return (
        f'<section data-steps="{steps}"><header><h2>{_text(task.replace("_", " "))}</h2>'
        f'<div class="bar"><button type="button">play</button>'
        f'<label>forward <input type="range" min="0" max="{steps}" value="{steps}" id="slider{number}"></label>'
        f"<output>{steps} of {steps}</output></div>"
        f'<div class="scale"><b>colour = forward in which the cell was committed</b>{scale}</div></header>'
        f"{shown}</section>"
    )


def _case(case: Case, columns: Mapping[str, int] | None, steps: int) -> str:
    gold = str(case.decodes[0].get("gold", ""))
    answer = f"<h5>an answer on file</h5><pre>{_text(gold)}</pre>" if gold else ""
    boards = "".join(_board(decode, columns, steps) for decode in case.decodes)
    first = next((line for line in reversed(case.prompt.splitlines()) if line.strip()), "prompt")
    return (
        f'<article><details><summary>{_text(first[:90])}</summary><div class="texts"><div><h5>prompt</h5>'
        f"<pre>{_text(case.prompt)}</pre></div><div>{answer}</div></div></details>"
        f'<div class="boards">{boards}</div></article>'
    )


def _board(decode: Decode, columns: Mapping[str, int] | None, steps: int) -> str:
    length = len(decode["order"])
    across = columns_of(decode, columns)
    boxes = box_of(length - 1, length, across)
    shape = (
        f'class="grid" style="--columns:{across};--w:{boxes[1]};--h:{boxes[0]}"' if across < length else 'class="line"'
    )
    clues = clues_of(decode)
    cells = "".join(
        _cell(int(step) + 1, str(token), steps, position in clues, box_of(position, length, across))
        for position, (step, token) in enumerate(zip(decode["order"], decode["tokens"], strict=True))
    )
    right = float(decode["correct"])
    verdict, mark = ("right", "\N{CHECK MARK} right") if right >= 0.5 else ("wrong", "\N{MULTIPLICATION X} wrong")
    return (
        f'<figure class="{_text(str(decode["family"]))}" data-last="{last_step(decode)}"><figcaption>'
        f"<strong>{_text(name_of(decode))}</strong><span>{float(decode['nfe']):g} forwards</span>"
        f'<em class="{verdict}">{mark}</em></figcaption><div {shape}>{cells}</div></figure>'
    )


def _cell(number: int, token: str, steps: int, clue: bool, box: tuple[int, int]) -> str:
    """One position; number: its forward, counted from 1, or less if the decode ended before it."""
    place = f"--y:{box[0]};--x:{box[1]}"
    if number < 1:
        return f'<span class="never" style="{place}"><b>?</b><sub>never</sub></span>'
    colour = step_colour(number, steps)
    kind = ' class="clue"' if clue else ""
    return (
        f'<span{kind} data-step="{number}" style="--c:{colour};--i:{ink_on(colour)};{place}">'
        f"<b>{_text(glyph(token))}</b><sub>{number}</sub></span>"
    )


def _text(text: str) -> str:
    """Escaped, with colons and equals signs too: a prompt that quotes an address must not look like a reference."""
    return html.escape(text).replace("://", "&#58;//").replace("=", "&#61;")


_STYLE = """
:root { color-scheme: light; --line: #d9dce1; --soft: #5b6470; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; color: #1c2127; background: #fafbfc; margin: 0 auto;
  max-width: 1200px; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 0; } h3 { font-size: 15px; margin: 22px 0 6px; }
h5 { font-size: 12px; margin: 0; color: var(--soft); font-weight: 600; }
.lead { color: var(--soft); max-width: 70ch; margin: 0 0 18px; }
section { margin: 26px 0 40px; }
header { position: sticky; top: 0; z-index: 2; background: #fafbfcf2; border-bottom: 1px solid var(--line);
  padding: 8px 0; display: flex; flex-wrap: wrap; gap: 6px 22px; align-items: center; }
.bar { display: none; gap: 10px; align-items: center; } .js .bar { display: flex; }
.bar input { width: 260px; vertical-align: middle; accent-color: #d55e00; }
.bar button { font: inherit; width: 64px; padding: 2px 0; border: 1px solid var(--line); border-radius: 6px;
  background: #fff; cursor: pointer; }
.bar output { font-variant-numeric: tabular-nums; min-width: 62px; }
.scale { width: 100%; display: flex; gap: 1px; align-items: center; font-size: 12px; }
.scale b { font-weight: 400; color: var(--soft); margin-right: 8px; white-space: nowrap; }
.scale i { font-style: normal; flex: 0 1 28px; height: 18px; min-width: 0; text-align: center; border-radius: 2px; }
article { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px 14px;
  margin: 10px 0; }
summary { cursor: pointer; color: var(--soft); font-size: 13px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.texts { display: flex; flex-wrap: wrap; gap: 24px; margin: 8px 0; }
pre { font: 13px/1.35 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; margin: 4px 0 0; }
.boards { display: flex; flex-wrap: wrap; gap: 16px 20px; margin-top: 10px; }
figure { margin: 0; padding-top: 5px; border-top: 3px solid transparent; max-width: 100%; }
figure.learned { border-top-color: #d55e00; }
figcaption { font-size: 13px; margin-bottom: 6px; } figcaption strong { display: block; }
figcaption span { color: var(--soft); margin-right: 10px; } em { font-style: normal; font-weight: 600; }
.right { color: #00704f; } .wrong { color: #b3261e; }
.grid { display: grid; grid-template-columns: repeat(var(--columns), 38px); gap: 3px; }
.grid { margin: 0 calc(5px * var(--w)) calc(5px * var(--h)) 0; }
.grid > span { transform: translate(calc(5px * var(--x)), calc(5px * var(--y))); }
.clue::after { content: ""; position: absolute; inset: 3px; border: 1px solid; border-radius: 3px; opacity: .75; }
.line { display: flex; flex-wrap: wrap; gap: 3px; }
.grid > span, .line > span { position: relative; min-width: 30px; height: 38px; padding: 2px 7px 12px;
  border-radius: 5px; background: var(--c); color: var(--i); text-align: center; white-space: pre; }
.grid > span { padding: 2px 0 12px; }
.grid b, .line b { font-size: 17px; font-weight: 600; } .line b { font-size: 14px; }
sub { position: absolute; right: 5px; bottom: 4px; font-size: 10px; line-height: 1; opacity: .85; }
span.never, .masked { color: #8a929c !important;
  background: repeating-linear-gradient(45deg, #eef0f3, #eef0f3 4px, #e3e6ea 4px, #e3e6ea 8px) !important; }
.masked b, .masked sub { visibility: hidden; }
.fresh { box-shadow: 0 0 0 2px #fff, 0 0 0 4px #d55e00; z-index: 1; }
@media print { header { position: static; } .bar { display: none !important; } }
"""

_SCRIPT = """
document.documentElement.classList.add("js");
for (const section of document.querySelectorAll("section")) {
  const slider = section.querySelector("input"), output = section.querySelector("output");
  const button = section.querySelector("button"), steps = Number(section.dataset.steps);
  const cells = [...section.querySelectorAll("[data-step]")];
  let timer = null;
  const show = (now) => {
    slider.value = now;
    output.textContent = now + " of " + steps;
    for (const cell of cells) {
      const step = Number(cell.dataset.step);
      cell.classList.toggle("masked", step > now);
      cell.classList.toggle("fresh", step === now && now < steps);
    }
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => {
    if (timer) { stop(); return; }
    let now = Number(slider.value) >= steps ? 0 : Number(slider.value);
    button.textContent = "pause";
    show(now);
    timer = setInterval(() => { now += 1; show(now); if (now >= steps) { stop(); } }, 700);
  });
  const asked = /^#forward-(\\d+)$/.exec(location.hash);
  show(asked ? Math.min(steps, Number(asked[1])) : steps);
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Decoding order</title>
<style>$style</style>
</head>
<body>
<h1>Decoding order</h1>
<p class="lead">Each board is one canvas. A cell's colour and small number say in which forward pass it was committed;
cells of one colour were committed together; cells with a frame are given in the prompt.
The same prompt is decoded by every rule beside it.
Drag the slider to watch the canvases fill; a link ending in #forward-3 opens them after the third pass.</p>
$body
<script>$script</script>
</body>
</html>
"""
