"""CPU time of the management commands beyond a bare interpreter: with the first-party plugins, and with every odd, broken and
hostile distribution of tests/dists besides (in an environment of its own).

Written down before the first run: under 0.1 s with the first-party plugins, under 0.3 s with all of tests/dists.

Run: make bench, or .venv/bin/python benchmarks/startup.py
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import machine, show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest_shared import DISTS, make_environment

RUNS = 15
COMMANDS = (
    ["--help"],
    ["list", "--json"],
    ["plugins", "--json"],
    ["show", "timm/efficientnet_lite1"],
    ["disable", "text"],
    ["enable", "text"],
    ["cache"],
)


def cpu_s(command: list[str], environment: dict[str, str]) -> float:
    """User and system seconds of one child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(python: str, environment: dict[str, str]) -> None:
    # Not measured: the first listing asks plugins without a manifest, in processes of their own.
    subprocess.run([python, "-m", "zoo", "list"], check=True, capture_output=True, env=environment)
    bare: list[float] = []
    rows: dict[str, list[float]] = {" ".join(command): [] for command in COMMANDS}
    for _ in range(RUNS):  # alternating, so that a busy moment meets all of them
        bare.append(cpu_s([python, "-c", "pass"], environment))
        for command in COMMANDS:
            rows[" ".join(command)].append(cpu_s([python, "-m", "zoo", *command], environment))
    floor = statistics.median(bare)
    show(f"  python -c pass: {floor:.3f} s of CPU time (median of {RUNS})")
    for name, values in rows.items():
        show(f"  zoo {name}: {statistics.median(values) - floor:.3f} s beyond it")


def main() -> None:
    show(machine())
    with tempfile.TemporaryDirectory() as folder:
        # Where Python may not keep its bytecode, each command would be measured with the compilation of all that it imports.
        settings = {"PYTHONDONTWRITEBYTECODE": "", "ZOO_CONFIG": f"{folder}/config.toml", "ZOO_STATE": f"{folder}/state"}
        show("the first-party plugins")
        measure(sys.executable, {**os.environ, **settings})
        dists = sorted(path.parent for path in DISTS.glob("*/pyproject.toml") if path.parent.name != "zoodist-rival")
        python = make_environment(Path(folder, "environment"), dists)
        show(f"and {len(dists)} odd, broken and hostile distributions")
        measure(str(python), {**os.environ, **settings, "ZOO_STATE": f"{folder}/state-crowd"})


if __name__ == "__main__":
    main()
