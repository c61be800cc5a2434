"""The policy's step on one thread, exported file in ONNX Runtime against eager torch: medians of paired ratios.
Run by hand: `python tests/benchmarks/policy_step.py`."""

from __future__ import annotations

import argparse

from rich.console import Console

from components.bench import tables
from components.bench.policy_step import SIZES, policy_step
from components.commands.bench import fresh_policies
from components.commands.resolve import active_profile


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--repeats", type=int, default=31)
    asked.add_argument("--width", type=int, default=128, help="of the hidden states that the profile's policy reads")
    want = asked.parse_args()
    _, settings = active_profile()
    found = [
        {"policy": name, **row}
        for name, policy in fresh_policies(settings, want.width).items()
        for row in policy_step(policy, SIZES, want.repeats)
    ]
    Console(width=150, highlight=False).print(tables.policy_step(found))


if __name__ == "__main__":
    main()
