"""Prefect flows over the DVC graph: where, when, retried how, and then what.

What is up to date is DVC's question, and `dvc repro` answers it without anything in this package.
"""

import os

# A run that sends no heartbeat for 90 s is declared crashed (infra/heartbeat.yaml). Prefect's default of one heartbeat
# in 180 s would have every healthy run declared dead, so it is set before Prefect reads its settings.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
