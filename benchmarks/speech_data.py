"""Human speech with its words, from three packages of Debian: five clips of a LibriVox reader, and telephone prompts in English.

    python benchmarks/speech_data.py [FOLDER]

FOLDER is a cache, speech_data in the folder for temporary files unless given: packages and what is in them are put there and found there
again (21 MB fetched, 200 in all). The packages come by `apt-get download`, of the very version and sha256 that are written below, and are unpacked by `dpkg-deb -x`; nothing is installed, and
nothing of the data lies in this repository. "librivox" is pocketsphinx-testdata (BSD-2): 16 kHz, 24.7 s, 71 words, a LibriVox volunteer who
reads Sense and Sensibility. "prompts" is asterisk-core-sounds-en-wav with the texts of asterisk-core-sounds-en (CC-BY-SA-3.0): 8 kHz,
recorded by Allison Smith in a studio, and brought to 16 kHz here by `zoo.media.audio`, so that all who are compared hear the same samples.

Which prompts count: those whose text is 3 to 20 words and only plain words, which is letters, apostrophes, hyphens between letters, and
the punctuation , . ! ? : and ; each word of two letters or more but for "a" and "I" (spelled-out names go), no word in capitals (DAHDI), and
no digits, brackets or signs. Of recordings that are the same bytes the first by name stays. References are as published, their
spelling mistakes (witheld, a more a amiable) included: they cost every system the same.

The speed benchmark asks for four sounds, made here in 16 kHz: `clip7` is the first LibriVox clip, 7.1 s; `clip27` all five, each with half
a second of silence after it, 27.2 s; `long` those and prompts in a drawn order, spaced in the same way, until the next one would pass
300 s; `hour` is `long` over and over, cut at 3,600 s.
"""

import argparse
import gzip
import hashlib
import re
import tempfile
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from debian import run_tool

from zoo.media.audio import open_audio

CACHE = Path(tempfile.gettempdir()) / "speech_data"
PACKAGES = {  # version, sha256 of the .deb
    "pocketsphinx-testdata": (
        "0.8+5prealpha+1-15",
        "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
    ),
    "asterisk-core-sounds-en-wav": ("1.6.1-1", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"),
    "asterisk-core-sounds-en": ("1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
}
LIBRIVOX = Path("usr/share/pocketsphinx/test/data/librivox")
PROMPTS = Path("usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
PLAIN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
RATE_HZ, PAUSE_S, LONG_S, HOUR_S = 16_000, 0.5, 300, 3_600

Samples = np.ndarray[Any, np.dtype[np.int16]]


class Utterance(NamedTuple):
    """A recording and what is said in it."""

    path: Path
    text: str


def unpacked(package: str, cache: Path) -> Path:
    """The folder with the files of a package, fetched and checked if it is not there yet."""
    version, sha256 = PACKAGES[package]
    folder = cache / f"{package}_{version}"
    if not folder.exists():
        deb = _fetched(package, cache)
        found = hashlib.sha256(deb.read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(
                f"{deb} has sha256 {found}, expected {sha256}: delete it; if it comes again so, the package was changed"
            )
        draft = folder.with_name(f"{folder.name}.draft")
        run_tool(["dpkg-deb", "-x", str(deb), str(draft)], cache, needs=_needs(cache))
        draft.rename(folder)
    return folder


def _fetched(package: str, cache: Path) -> Path:
    version = PACKAGES[package][0]
    deb = cache / f"{package}_{version}_all.deb"
    if not deb.exists():
        cache.mkdir(parents=True, exist_ok=True)
        run_tool(["apt-get", "download", "-qq", f"{package}={version}"], cache, needs=_needs(cache))
    if not deb.exists():
        raise SystemExit(f"apt-get download {package}={version} left no {deb.name} in {cache}")
    return deb


def _needs(cache: Path) -> str:
    return f"Debian's apt and dpkg, or the .deb files named in {Path(__file__).name} in {cache}"


def librivox(cache: Path) -> list[Utterance]:
    """The five clips, in the order of the book."""
    folder = unpacked("pocketsphinx-testdata", cache) / LIBRIVOX
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    matches = [re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()) for line in lines]
    return [Utterance(folder / f"{match[2]}.wav", match[1]) for match in matches if match]


def prompts(cache: Path) -> list[Utterance]:
    """The prompts that count, by name, in 16 kHz."""
    sounds = unpacked("asterisk-core-sounds-en-wav", cache) / PROMPTS
    texts = unpacked("asterisk-core-sounds-en", cache) / TEXTS
    found: dict[str, Utterance] = {}
    for line in sorted(gzip.decompress(texts.read_bytes()).decode("utf-8").splitlines()):
        name, _, text = line.partition(": ")
        path = sounds / f"{name}.wav"
        if counts(text) and path.exists():
            found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), Utterance(path, text.strip()))
    return [
        Utterance(_resampled(path, cache / "prompts" / path.relative_to(sounds)), text) for path, text in found.values()
    ]


def _resampled(path: Path, target: Path) -> Path:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, _samples(path))
    return target


def counts(text: str) -> bool:
    """Whether the text is 3 to 20 plain words."""
    words = re.sub(r"[,.!?:;]", " ", text).split()
    plain = all(PLAIN.fullmatch(word) and (len(word) > 1 or word in "aAI") for word in words)
    return 3 <= len(words) <= 20 and plain and not any(len(word) > 1 and word.isupper() for word in words)


SETS: dict[str, Callable[[Path], list[Utterance]]] = {"librivox": librivox, "prompts": prompts}


def seconds(path: Path) -> float:
    with wave.open(str(path)) as file:
        return float(file.getnframes() / file.getframerate())


def sounds(cache: Path) -> dict[str, Utterance]:
    """clip7, clip27, long and hour, made under `cache` if they are not there yet; the text of hour is that of long, not repeated."""
    folder, clips = cache / "sounds", librivox(cache)
    made = {name: folder / f"{name}.wav" for name in ("clip27", "long", "hour")}
    spoken = [*clips, *_drawn(prompts(cache), clips)]
    if not all(path.exists() for path in made.values()):
        folder.mkdir(parents=True, exist_ok=True)
        whole = np.concatenate(list(_spaced(spoken)))
        _write(made["clip27"], np.concatenate(list(_spaced(clips))))
        _write(made["long"], whole)
        _write(made["hour"], np.resize(whole, RATE_HZ * HOUR_S))
    text = " ".join(utterance.text for utterance in spoken)
    return {
        "clip7": clips[0],
        "clip27": Utterance(made["clip27"], " ".join(clip.text for clip in clips)),
        "long": Utterance(made["long"], text),
        "hour": Utterance(made["hour"], text),
    }


def _drawn(candidates: Sequence[Utterance], before: Sequence[Utterance]) -> list[Utterance]:
    """Prompts in an order that a seed draws, as many as fit behind `before`."""
    length, taken = sum(seconds(utterance.path) + PAUSE_S for utterance in before), []
    for index in np.random.default_rng(0).permutation(len(candidates)):
        length += seconds(candidates[index].path) + PAUSE_S
        if length > LONG_S:
            break
        taken.append(candidates[index])
    return taken


def _samples(path: Path) -> Samples:
    samples = open_audio(path, sample_rate_hz=RATE_HZ).samples
    return (samples * 32768).round().clip(-32768, 32767).astype(np.int16)


def _spaced(utterances: Sequence[Utterance]) -> Iterator[Samples]:
    for utterance in utterances:
        yield _samples(utterance.path)
        yield np.zeros(round(PAUSE_S * RATE_HZ), np.int16)


def _write(path: Path, samples: Samples) -> None:
    draft = path.with_suffix(".draft")
    with wave.open(str(draft), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", "not compressed"))
        file.writeframes(samples.astype("<i2").tobytes())
    draft.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=CACHE, help="where packages and sounds are kept")
    folder = parser.parse_args().folder
    for name, find in SETS.items():
        utterances = find(folder)
        words = sum(len(utterance.text.split()) for utterance in utterances)
        length = sum(seconds(utterance.path) for utterance in utterances)
        print(f"{name}: {len(utterances)} utterances, {words} words, {length:.1f} s")
    for name, utterance in sounds(folder).items():
        print(f"{name}: {seconds(utterance.path):.1f} s, {utterance.path}")


if __name__ == "__main__":
    main()
