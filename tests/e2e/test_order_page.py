"""The decoding-order page in a real browser, at the width of a telephone and of a desk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.reports import order_page
from tests.browser import BROWSER, NONE, dom
from tests.unit.test_reports import synthetic_decodes

pytestmark = pytest.mark.e2e

# Uses the page as a reader does, then tells the page around it what it saw.
DRIVER = """<script>
addEventListener("load", () => {
  const found = {}, tell = () => parent.postMessage(JSON.stringify(found), "*");
  const section = document.querySelector("section"), slider = section.querySelector("input");
  const masked = () => section.querySelectorAll(".masked").length;
  found.wide = [document.documentElement.scrollWidth, innerWidth];
  found.cut = [...document.querySelectorAll("figure, .bar, .scale, svg, pre")]
    .filter((part) => part.getClientRects().length && part.getBoundingClientRect().right > innerWidth + 0.5).length;
  found.opened = [slider.value, masked()];
  slider.value = 0; slider.dispatchEvent(new Event("input"));
  found.none = masked();
  slider.value = slider.max; slider.dispatchEvent(new Event("input"));
  found.all = masked();
  const cell = document.querySelector("svg.step g[data-cell]"), step = cell.closest("svg");
  cell.dispatchEvent(new Event("click"));
  found.told = [...step.querySelectorAll("g[data-cell] text")].map((text) => text.textContent);
  found.shift = JSON.parse(step.dataset.shift)[0];
  cell.dispatchEvent(new Event("blur"));
  found.quiet = [...step.querySelectorAll("g[data-cell] text")].every((text) => text.textContent === "");
  tell();
  section.querySelector("button").click();
  setTimeout(() => {
    found.played = [Number(slider.value), section.querySelector("button").textContent];
    tell();
  }, 1600);
});
</script></body>"""

# A window is never narrower than 500 pixels, a frame is.
FRAME = """<body><iframe src="driven.html#forward-3" style="width:{width}px;height:900px;border:0"></iframe>
<script>onmessage = (event) => document.body.setAttribute("data-found", event.data)</script></body>"""

# MLflow shows an artifact so: text becomes a blob, in a frame that may run scripts and has no origin of its own.
SANDBOX = """<body><script>
onmessage = (event) => document.body.setAttribute("data-found", event.data);
const frame = document.createElement("iframe");
frame.setAttribute("sandbox", "allow-scripts");
frame.style = "width:{width}px;height:900px;border:0";
frame.src = URL.createObjectURL(new Blob([{text}], {{type: "text/html"}}));
document.body.append(frame);
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return order_page.write(tmp_path_factory.mktemp("page") / "order.html", synthetic_decodes())


@pytest.mark.skipif(BROWSER is None, reason=NONE)
@pytest.mark.parametrize("width", [420, 1440])
def test_the_page_works_in_a_browser(page: Path, width: int, tmp_path: Path) -> None:
    found = driven(page, width, tmp_path)
    assert found["wide"] == [width, width] and found["cut"] == 0, "nothing is wider than the window"
    value, masked = found["opened"]
    assert value == "3" and 0 < masked < found["none"], "the link opens it after the third pass"
    steps = [
        int(step) for step in re.findall(r'data-step="(\d+)"', page.read_text(encoding="utf-8").split("</section>")[0])
    ]
    assert found["none"] == len(steps) and found["all"] == 0 and masked == sum(step > 3 for step in steps)
    told = [f"{move:+.1f}".replace("-", "\N{MINUS SIGN}") for move in found["shift"][1:]]
    assert found["told"] == ["", *told] and found["quiet"]
    assert found["played"][0] in (1, 2, 3) and found["played"][1] == "pause"


@pytest.mark.skipif(BROWSER is None, reason=NONE)
def test_the_page_works_in_the_frame_in_which_mlflow_shows_an_artifact(page: Path, tmp_path: Path) -> None:
    text = json.dumps(page.read_text(encoding="utf-8").replace("</body>", DRIVER)).replace("</", "<\\/")
    found = seen_in(SANDBOX.format(width=900, text=text), tmp_path)
    assert found["wide"] == [900, 900] and found["cut"] == 0
    assert found["opened"][1] == found["all"] == 0 < found["none"], "it opens complete, and the slider empties it"
    assert found["told"][0] == "" and all(found["told"][1:]) and found["quiet"]  # no timer fires in a blob here


def driven(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """What the driver saw in the page, opened after the third pass in a frame of this width."""
    (folder / "driven.html").write_text(page.read_text(encoding="utf-8").replace("</body>", DRIVER), encoding="utf-8")
    return seen_in(FRAME.format(width=width), folder)


def seen_in(outer: str, folder: Path) -> dict[str, Any]:
    """What the driver saw, by the page around its own."""
    frame = folder / "frame.html"
    frame.write_text(outer, encoding="utf-8")
    (seen,) = re.findall(r'data-found="([^"]*)"', dom(frame, folder))
    return json.loads(seen.replace("&quot;", '"'))
