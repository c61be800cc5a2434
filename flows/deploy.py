"""Give a Prefect server this project's work pools, deployments and heartbeat automation. Twice changes nothing.

`python -m flows.deploy`, from the repository's root, for the server that PREFECT_API_URL names. `make up` does it for
the local stack, compose.yaml for the team's.
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.core.errors import OURS, SettingsError, masked
from components.core.files import read_yaml

POOLS = ("cpu", "gpu")
DEPLOYMENTS = Path("infra/prefect.yaml")
HEARTBEAT = Path("infra/heartbeat.yaml")


def deploy(checkout: Path, api: str, environment: Mapping[str, str]) -> None:
    """Make or update all of it on the server at `api` (.../api). Raises RuntimeError if the server refuses."""
    for pool in POOLS:
        if ask(api, "GET", f"/work_pools/{pool}") is None:
            ask(api, "POST", "/work_pools/", {"name": pool, "type": "process"})
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    steps = [[*prefect, "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]]
    name = read_yaml(checkout / HEARTBEAT, "Restore the file.")["name"]
    if not ask(api, "POST", "/automations/filter", {"automations": {"name": {"any_": [name]}}}):
        steps.append([*prefect, "automation", "create", "--from-file", str(HEARTBEAT)])
    for step in steps:
        settings = {**os.environ, **environment, "PREFECT_API_URL": api}
        done = subprocess.run(step, cwd=checkout, env=settings, capture_output=True, text=True)
        if done.returncode:
            said = masked(f"{done.stdout}{done.stderr}")  # it names the server, which may have a password
            raise RuntimeError(
                f"`{' '.join(step[2:])}` ended with code {done.returncode}. Mend what it names, and repeat.\n{said}"
            )


def enter_checkout() -> dict[str, str]:
    """The pull step of every deployment: the checkout of the machine that the run lands on, whoever deployed it.

    UNMASK_REPOSITORY names it; else it is the folder that the worker starts the run in.
    """
    folder = Path(os.environ.get("UNMASK_REPOSITORY", "."))
    if not (folder / "dvc.yaml").exists():
        raise SettingsError(
            f"{folder.resolve()} is no checkout of this project. Set UNMASK_REPOSITORY, or start the worker in one."
        )
    return {"directory": str(folder.resolve())}


def ask(api: str, method: str, path: str, body: Any = None) -> Any:
    """One call of Prefect's REST API; None if nobody answers or the answer is an error."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(api + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or "null")
    except (OSError, ValueError):  # nobody there, too slow, an error status (an OSError), no address, or no JSON
        return None


def main() -> None:
    """Command line; see the module's first lines."""
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        sys.exit("PREFECT_API_URL is not set. Set it, or run `make up`.")
    try:
        deploy(Path.cwd(), api, {})
    except (RuntimeError, *OURS) as error:
        sys.exit(masked(str(error)))


if __name__ == "__main__":
    main()
