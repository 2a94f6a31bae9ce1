"""Tools of Debian that fetch and make what sound_data.py and speech_data.py are about."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def run_tool(command: Sequence[str], folder: Path, *, needs: str) -> None:
    """Run a tool in a folder; ends the script with its last words where it fails. needs: said where it is not installed."""
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"no {command[0]} here: this needs {needs}") from None
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{' '.join(command)}: {reason} (first `apt-get update`? Debian 12 has these versions)")
