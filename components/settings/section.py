"""The base of every section, a frozen model without defaults, and the number types of the settings."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..core.files import NAME

MOST = 1_000_000  # of what is counted, and of a number without a bound of its own; a larger one is a slip of the hand
WIDEST = 65_536  # positions of a canvas, width of a layer


def _no_truth_value(value: Any) -> Any:
    """To pydantic, true is 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number. Write one.")
    return value


NUMBER = BeforeValidator(_no_truth_value)
Count = Annotated[int, Field(ge=1, le=MOST), NUMBER]
Natural = Annotated[int, Field(ge=0, le=MOST), NUMBER]
Size = Annotated[int, Field(ge=1, le=WIDEST), NUMBER]
Seed = Annotated[int, Field(ge=0, lt=2**31), NUMBER]
Rate = Annotated[float, Field(gt=0, le=1), NUMBER]
Share = Annotated[float, Field(ge=0, le=1), NUMBER]
Positive = Annotated[float, Field(gt=0, le=MOST), NUMBER]
NonNegative = Annotated[float, Field(ge=0, le=MOST), NUMBER]
Finite = Annotated[float, Field(ge=-MOST, le=MOST), NUMBER]
Layout = Literal["llada", "dream"]
Name = Annotated[str, Field(pattern=NAME)]  # becomes a file name and part of a stage name


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
