"""Prefect flows over the DVC graph: where, when, retried how, and then what.

What is up to date is DVC's question, and `dvc repro` answers it without anything in this package.
"""

import os
from pathlib import Path

# Prefect reads its settings when it is imported, which is after this.
DEFAULTS = {
    # A run that sends no heartbeat for 90 s is declared crashed (infra/heartbeat.yaml). Prefect's default of one
    # heartbeat in 180 s would have every healthy run declared dead.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # A temporary server needs more than Prefect's 20 s on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DASK_LOGGING__DISTRIBUTED": "warning",
    "ORT_DISABLE_TELEMETRY": "1",
}
for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
if not {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILES_PATH"} & set(os.environ):
    # No server was named: what the temporary one keeps lies in the checkout, and no profile of the user decides.
    os.environ["PREFECT_HOME"] = str(Path.cwd() / ".prefect")
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
