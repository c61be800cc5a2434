"""The page of `dvc plots show` in a real browser that reaches no network: every plot of dvc.yaml is drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.reports import learning, pareto
from tests.browser import BROWSER, NONE, dom
from tests.unit.test_reports import synthetic, synthetic_rounds

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(BROWSER is None, reason=NONE)]
ROOT = Path(__file__).parents[2]
# Counts the canvases that have a mark of any color, not only a frame that stands empty.
DRIVER = """<script>
setTimeout(() => {
  const marks = (canvas) => canvas.width === 0 ? 0 : new Set(new Uint32Array(
    canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
  document.body.dataset.colors = [...document.querySelectorAll("canvas")].map(marks).join(" ");
}, 4000);
</script></body>"""


def test_every_plot_is_drawn_without_a_network(tmp_path: Path) -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8").replace("${profile}", "tiny")
    graph = yaml.safe_load(text)
    plots = [*graph["stages"]["report"]["plots"], *graph["plots"]]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}), encoding="utf-8")
    shutil.copytree(ROOT / "infra" / "dvc", tmp_path / "infra" / "dvc")
    outputs = tmp_path / "outputs" / "tiny"
    pareto.write_csv(outputs / "plots" / "pareto.csv", synthetic())
    rounds = [found | {"policy/kl": 0.1 * step} for step, found in enumerate(synthetic_rounds())]
    learning.write_csv(outputs / "plots" / "learning.csv", rounds)
    epochs = "epoch,influence/loss,influence/unexplained,influence/held_unexplained\n0,0.5,0.9,0.8\n1,0.4,0.6,0.7\n"
    (outputs / "influence").mkdir()
    (outputs / "influence" / "epochs.csv").write_text(epochs, encoding="utf-8")
    for words in (["init", "--no-scm", "--quiet"], ["plots", "show", "--quiet", "-o", "pages"]):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=tmp_path, check=True)
        shutil.copy(ROOT / ".dvc" / "config", tmp_path / ".dvc" / "config")
    page = tmp_path / "pages" / "index.html"
    before, _, after = page.read_text(encoding="utf-8").rpartition("</body>")  # a library has the word too
    page.write_text(before + DRIVER + after, encoding="utf-8")
    (colors,) = re.findall(r'data-colors="([^"]*)"', dom(page, tmp_path, 8000))
    assert len(colors.split()) == len(plots), "a plot is missing"
    assert all(int(count) > 10 for count in colors.split()), colors
