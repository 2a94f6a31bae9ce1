"""What a cold `zoo classify one.jpg` spends its time on, from the command to the last byte.

Each phase is the median over fresh processes; the file cache is warm. "timm alone" is the shortest script that gives the same
answer with timm on the same weights.

Run: make bench, or .venv/bin/python benchmarks/cold_start.py [--runs 7]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import machine, progress, show

import zoo
from zoo.weights.delivery import fetch

PHOTO = str(Path(zoo.__file__).parent / "cli" / "demo" / "photos" / "chelsea.jpg")
ZOO = str(Path(sys.executable).with_name("zoo"))

PHASES = """
import time; start = last = time.perf_counter()
times = {}
def lap(name):
    global last
    now = time.perf_counter(); times[name] = now - last; last = now
import torch; lap("import torch")
import timm; lap("import timm (with torchvision)")
import zoo.tasks.classify; lap("import zoo")
built = zoo.open_model("timm/efficientnet_lite0"); lap("find, hash, build and load weights")
import sys
zoo.classify(sys.argv[1], model=built); lap("read, prepare, first forward, answer")
zoo.classify(sys.argv[1], model=built); lap("(the same again)")
import json; print(json.dumps(times))
"""

TIMM = """
import sys, timm, torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
model = timm.create_model("tf_efficientnet_lite0").eval()
state = torch.load(sys.argv[2], weights_only=True)
model.load_state_dict(dict(zip(model.state_dict(), state.values())))
transform = create_transform(**resolve_data_config(model=model))
with torch.inference_mode():
    print(model(transform(Image.open(sys.argv[1]).convert("RGB"))[None]).softmax(-1).topk(5))
"""


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    weights = str(fetch("timm/efficientnet_lite0")[0].path)
    commands = {
        "zoo classify one.jpg": [ZOO, "classify", PHOTO],
        "zoo classify one.jpg --labels (9 labels)": [
            ZOO,
            "classify",
            PHOTO,
            "--labels",
            "cat,dog,car,cup,tree,bus,hat,sea,fox",
        ],
        "timm alone": [sys.executable, "-c", TIMM, PHOTO, weights],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    }
    walls: dict[str, list[float]] = {name: [] for name in commands}
    phases: dict[str, list[float]] = {}
    for run in range(runs):
        for name, command in commands.items():
            walls[name].append(seconds(command))
            progress(f"run {run + 1} of {runs}: {name}, {walls[name][-1]:.2f} s")
        output = subprocess.run([sys.executable, "-c", PHASES, PHOTO], check=True, capture_output=True, text=True).stdout
        for name, value in json.loads(output).items():
            phases.setdefault(name, []).append(value)
    show(machine())
    show(f"whole processes, median of {runs} alternating runs")
    for name, values in walls.items():
        show(f"  {statistics.median(values):6.2f} s  {name}")
    show("phases of zoo classify one.jpg")
    for name, values in phases.items():
        show(f"  {1000 * statistics.median(values):6.0f} ms  {name}")


if __name__ == "__main__":
    main()
