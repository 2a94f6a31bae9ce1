"""Peak memory and speed of `zoo embed` at 500 and at 5,000 images, and a `kill -9` that costs nothing.

The images are JPEGs of 640 x 480, each another crop of a bundled photo, mirrored or turned. Each run is a process of its own; its
peak memory is what the system counted. At last the 5,000 are embedded again, killed at a random moment, started again, and
the two files are compared byte for byte.

Run: make bench, or .venv/bin/python benchmarks/embed_memory.py [--images 5000] [--model NAME]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, show
from PIL import Image, ImageOps

import zoo

PHOTOS = Path(zoo.__file__).parent / "cli" / "demo" / "photos"
FEW = 500
CHILD = """
import json, resource, sys, time
from zoo.cli import main
start = time.perf_counter()
code = main(sys.argv[1:])
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"code": code, "seconds": time.perf_counter() - start, "peak_kb": peak_kb}), file=sys.stderr)
"""


def generate(folder: Path, count: int, rng: random.Random) -> None:
    """JPEGs that all differ, of the size of a small photo."""
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    for number in range(count):
        photo = photos[number % len(photos)]
        share = rng.uniform(0.5, 1.0)
        width, height = round(photo.width * share), round(photo.height * share)
        left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
        crop = photo.crop((left, top, left + width, top + height)).resize((640, 480))
        crop = ImageOps.mirror(crop) if rng.random() < 0.5 else crop
        crop.save(folder / f"{number:05}.jpg", quality=85)


def command(images: Path, out: Path, model: list[str]) -> list[str]:
    """One `zoo embed` in a fresh interpreter."""
    return [sys.executable, "-c", CHILD, "embed", "--list", str(images), "--out", str(out), "--json", *model]


def measured(words: list[str]) -> tuple[dict[str, float], dict[str, object]]:
    """What the process measured of itself, and its document."""
    run = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(run.stderr.splitlines()[-1]), json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--model", help="another model than the default")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    model = ["--model", arguments.model] if arguments.model else []
    rng = random.Random(arguments.seed)  # noqa: S311 - where a photo is cut is no secret
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        generate(folder / "images", arguments.images, random.Random(0))  # noqa: S311 - as above
        paths = [str(path) for path in sorted((folder / "images").iterdir())]
        show(machine())
        peaks = []
        for count in (min(FEW, arguments.images), arguments.images):
            (folder / f"{count}.txt").write_text("\n".join(paths[:count]))
            cost, document = measured(command(folder / f"{count}.txt", folder / f"{count}.npz", model))
            peaks.append(cost["peak_kb"])
            show(
                f"{count} images: peak {cost['peak_kb'] / 1024:.0f} MiB, {count / cost['seconds']:.1f} images/s with all start-up, "
                f"{document['model']}, output {(folder / f'{count}.npz').stat().st_size / 1e6:.1f} MB",
            )
        extra_kb = (peaks[1] - peaks[0]) / max(1, arguments.images - FEW)
        show(f"each further image costs {extra_kb:.2f} kB of peak memory (its vector alone has 4 x its width bytes)")
        out = folder / "killed.npz"
        words = command(folder / f"{arguments.images}.txt", out, model)
        share = rng.uniform(0.1, 0.9)
        whole = (folder / f"{arguments.images}.npz").stat().st_size
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part = out.with_name(f"{out.name}.part")
        while process.poll() is None and not (part.exists() and part.stat().st_size > share * whole):
            time.sleep(0.01)
        process.kill()
        process.wait()
        _, document = measured(words)
        same = out.read_bytes() == (folder / f"{arguments.images}.npz").read_bytes()
        show(
            f"killed at {share:.0%}: the next run computed {document['computed']} of {arguments.images}; "
            f"the same bytes as without: {'yes' if same else 'NO'}"
        )


if __name__ == "__main__":
    main()
