"""`python -m flows.<name>`: a flag for each parameter of a flow, described and checked by the flow's own schema."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from components.core.errors import OURS, masked


def run_from_command_line(
    flow: Flow[..., Any], module: str, checks: Mapping[str, Callable[[str], None]] | None = None
) -> None:
    """Read the flags, run the flow, print what it returns as JSON. A list is given as JSON: --alphas '[1, 3]'.

    checks: by parameter, what must hold of a value that is given, before a temporary server takes its seconds.
    """
    summary = (flow.fn.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(f"python -m {module}", description=summary)
    for name, schema in parameter_schema(flow.fn).properties.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=schema.get("description"))
    given = {name: _value(text) for name, text in vars(parser.parse_args()).items()}
    try:
        for name, check in (checks or {}).items():
            if given.get(name):
                check(given[name])
        print(json.dumps(flow(**given), indent=2))
    except (ParameterTypeError, *OURS) as error:
        sys.exit(masked(str(error)))


def _value(text: str) -> Any:
    return json.loads(text) if text.startswith("[") else text  # Prefect makes numbers and truths of the other texts
