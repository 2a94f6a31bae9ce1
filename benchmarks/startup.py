"""CPU time of the management commands beyond a bare interpreter, with every first-party plugin installed.

Run: make bench, or .venv/bin/python benchmarks/startup.py
"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from machine import machine

RUNS = 15
ZOO = str(Path(sys.executable).with_name("zoo"))
COMMANDS = {
    "zoo list --json": [ZOO, "list", "--json"],
    "zoo plugins --json": [ZOO, "plugins", "--json"],
    "zoo --help": [ZOO, "--help"],
}


def cpu_s(command: list[str]) -> float:
    """User and system seconds of one child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    bare, rows = [], {name: [] for name in COMMANDS}
    for _ in range(RUNS):  # alternating, so that a busy moment meets all of them
        bare.append(cpu_s([sys.executable, "-c", "pass"]))
        for name, command in COMMANDS.items():
            rows[name].append(cpu_s(command))
    floor = statistics.median(bare)
    print(f"python -c pass: {floor:.3f} s of CPU time (median of {RUNS})")
    for name, values in rows.items():
        print(f"{name}: {statistics.median(values) - floor:.3f} s beyond it")
    print(machine())


if __name__ == "__main__":
    main()
