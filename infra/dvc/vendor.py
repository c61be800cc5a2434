"""Puts the plotting libraries from a node_modules folder into plots.html, and their licences into LICENSES.txt.

    npm install --prefix /tmp/vega vega@5 vega-lite@5 vega-embed@6
    python infra/dvc/vendor.py /tmp/vega/node_modules

Run by hand, when the libraries are to be renewed; no stage and no test needs npm. Left out: a lock file, since the
versions stand in the page itself.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = ("vega", "vega-lite", "vega-embed")
# What their bundles contain, from the bundles' source maps.
BUNDLED = re.compile(
    r"^(vega.*|d3-.*|delaunator|internmap|robust-predicates|topojson-client|fast-json-patch|semver|tslib"
    r"|json-stringify-pretty-compact)$"
)
CLASHES = ("</script", "<!--", "{plot_divs}", "{scripts}", "{refresh_tag}")


def main(modules: Path) -> None:
    page = (HERE / "plots.html").read_text(encoding="utf-8")
    for name in LIBRARIES:
        version = json.loads((modules / name / "package.json").read_text(encoding="utf-8"))["version"]
        code = (modules / name / "build" / f"{name}.min.js").read_text(encoding="utf-8")
        code = re.sub(r"\n?//# sourceMappingURL=.*\s*$", "", code)
        clash = [text for text in CLASHES if text in code]
        if clash:
            raise SystemExit(
                f"{name} {version} contains {clash}: it would end the script or be replaced by DVC; "
                "take another version."
            )
        tag = re.compile(rf'<script data-package="{name}(?:@[^"]*)?">.*?</script>', re.DOTALL)
        script = f'<script data-package="{name}@{version}">{code}</script>'
        page, count = tag.subn(lambda _, script=script: script, page)
        assert count == 1, (name, count)
    (HERE / "plots.html").write_text(page, encoding="utf-8")
    (HERE / "LICENSES.txt").write_text(licences(modules), encoding="utf-8")


def licences(modules: Path) -> str:
    """Each licence text once, under the packages that carry it. ``vega`` itself carries none: its parts do."""
    packages: dict[str, list[str]] = {}
    for folder in sorted(path for path in modules.iterdir() if BUNDLED.match(path.name)):
        version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
        for file in [path for path in sorted(folder.iterdir()) if path.name.upper().startswith("LICEN")]:
            text = file.read_text(encoding="utf-8").strip()
            packages.setdefault(text, []).append(f"{folder.name} {version}")
    rule = "=" * 100
    return "\n\n".join(f"{rule}\n{', '.join(names)}\n{rule}\n{text}" for text, names in packages.items()) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
