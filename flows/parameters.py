"""The flat parameters of a flow run, laid over params.yaml.

A flow shows a few typed fields as a form and refuses bad values by their bounds; everything else is params.yaml's,
whose settings are checked as a whole before anything runs.

Left out: what the settings mean and which combinations work (components/settings).
"""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from ruamel.yaml import YAML

from components.core.errors import SettingsError

if TYPE_CHECKING:
    from components.settings import Settings

Profile = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Seed = Annotated[int | None, Field(ge=0, lt=2**31)]
Alpha = Annotated[float | None, Field(ge=0, le=100)]
Iterations = Annotated[int | None, Field(ge=1)]
LearningRate = Annotated[float | None, Field(gt=0, le=1)]
Prompts = Annotated[int | None, Field(ge=1)]
Group = Annotated[int | None, Field(ge=2)]

# flow parameter -> place in the settings
PLACES = {
    "seed": ("train", "seed"),
    "alpha": ("train", "alpha"),
    "iterations": ("train", "iterations"),
    "learning_rate": ("train", "learning_rate"),
    "prompts_per_iteration": ("train", "prompts"),
    "group": ("train", "group"),
}


def merge(text: str, given: Mapping[str, Any]) -> str:
    """The text of a settings file with the parameters that are not None put in their places; comments stay.

    `given` holds the names in PLACES; others are ignored.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    settings = yaml.load(text)
    for name, (section, key) in PLACES.items():
        if given.get(name) is not None:
            settings.setdefault(section, {})[key] = _plain(given[name])
    merged = io.StringIO()
    yaml.dump(settings, merged)
    return merged.getvalue()


def _plain(value: Any) -> Any:
    """2e-05 as 2.0e-05: YAML 1.1 readers (PyYAML) take a number without a dot for a string."""
    mantissa, exponent, power = repr(value).partition("e")
    if isinstance(value, float) and exponent and "." not in mantissa:
        return YAML().load(f"{mantissa}.0e{power}")
    return value


def profile_of(text: str) -> str:
    """The name of the profile that the text of a settings file is of; empty where it names none."""
    settings = YAML(typ="safe").load(text)
    return str(settings.get("profile", "")) if isinstance(settings, Mapping) else ""


def active(checkout: Path) -> "Settings":
    """The settings that are active in the checkout, committed or not."""
    return validated((checkout / "params.yaml").read_text(encoding="utf-8"))


def validated(text: str) -> "Settings":
    """What the text of a settings file stands for. Raises SettingsError if it cannot work."""
    from components.settings import read

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return read(path)
        except SettingsError as error:
            raise SettingsError(str(error).replace(f"{folder}/", "")) from None
