"""Sounds with labels, in groups to hold out: drum hits by kit, notes by soundfont, spoken digits by speaker.

    python benchmarks/sound_data.py FOLDER

FOLDER gets packages/ (523 MB fetched, 1.7 GB with what is unpacked) and, for each set, SET/GROUP/LABEL/NAME.SUFFIX and SET.json, the list:
file, group, label, cluster (what is no independent evidence shares it) and sha256. Packages of Debian 12 come by `apt-get download`, of
the version and sha256 written below, and are unpacked, not installed; notes are rendered by `fluidsynth` (apt install fluidsynth). Nothing
of the data lies in this repository. What is in FOLDER already is checked and used as it is.

drums        393 one-shots of hydrogen-drumkits, 11 kits, 5 labels: those whose file name fits one label of DRUMS and no other. Licences:
             Audiophob CC0; BJA_Pacific CC-BY-SA-3.0-us; ColomboAcousticDrumkit GPL-2+ with an exception for compositions; the others GPL.
instruments  1,115 notes, 2 soundfonts, 10 families of General MIDI, 8 programs each, 7 pitches (NOTES), one second held and one that
             rings, no reverb, no chorus; 5 silent ones are left out. TimGM6mb GPL-2, FluidR3 MIT. The bytes depend on fluidsynth (2.3.1 here).
digits       138 recordings of 0 to 9, 14 speakers, 5 languages; two speakers lack 0. Asterisk's core prompts en, es, fr CC-BY-SA-3.0, it, ru
             CC-BY-3.0; it-menardi CC-BY-SA-3.0-it; fr-armelle permissive; es-co and tuxpaint's GPL-2. Two speakers of Asterisk are GSM.
"""

import argparse
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from debian import run_tool

NEEDS = "Debian's apt and dpkg, and fluidsynth (apt install fluidsynth)"
PACKAGES = {  # version, sha256 of the .deb
    "hydrogen-drumkits": (
        "2017.09.19~dfsg-1",
        "6ea3c6df9a67762e2362f946c695e619859126b19fbccf32a2e8f07dfd03b2f4",
    ),
    "timgm6mb-soundfont": ("1.3-5", "034abdfb296d9353433513dad5dbdcab46425ee6008fc02fe7039b46e75edc54"),
    "fluid-soundfont-gm": ("3.1-5.3", "6f531493ac4e4d9772fd96b2488ea1790af81c196135fbdd25997da0781fc60e"),
    "asterisk-core-sounds-en-wav": ("1.6.1-1", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"),
    "asterisk-core-sounds-es-wav": ("1.6.1-1", "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903"),
    "asterisk-core-sounds-fr-wav": ("1.6.1-1", "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e"),
    "asterisk-core-sounds-it-wav": ("1.6.1-1", "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb"),
    "asterisk-core-sounds-ru-wav": ("1.6.1-1", "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201"),
    "asterisk-prompt-es-co": (
        "0.20070403-2.1",
        "6702696e045514699e87dc8fb70f370717e5df91f821f7bec8dd0df1be008e83",
    ),
    "asterisk-prompt-fr-armelle": (
        "20070613-2.2",
        "162570b1a9b3512a98f06b89f60c7c17cf1b9b52297315adca9a4e5be728bea3",
    ),
    "asterisk-prompt-it-menardi-wav": (
        "1:1.4.22+mm20110907-3.1",
        "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
    ),
    "tuxpaint-stamps-default": (
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ),
}
DRUMS = {
    "hihat": "hat|hh",
    "cymbal": "crash|ride|cymbal|splash|china",
    "snare": "snare|^sn|_sn_|^sd_|^sr_",
    "tom": "tom(?!p)",  # not a stomp
    "kick": "kick|^bd|_bd_|bassdrum|_k_",
}
FAMILIES = (
    *("piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe"),
)  # eight programs each, in the order of General MIDI
NOTES = (36, 43, 50, 57, 64, 71, 78)
SOUNDFONTS = {  # name: package, file
    "timgm": ("timgm6mb-soundfont", "usr/share/sounds/sf2/TimGM6mb.sf2"),
    "fluid": ("fluid-soundfont-gm", "usr/share/sounds/sf2/FluidR3_GM.sf2"),
}
NOTE_RATE_HZ, HELD_S, SLOT_S, TICKS_PER_S, PAUSE_TICKS = 44_100, 1.0, 2.0, 960, 20
SILENT = 1e-3  # a note whose largest sample is below is no note
TELEPHONE_HZ = 8_000
PROMPTS, STAMPS = "usr/share/asterisk/sounds", "usr/share/tuxpaint/stamps/symbols/math"
SPEAKERS = {  # language-name: package, pattern of a digit's file
    "en-allison": ("asterisk-core-sounds-en-wav", f"{PROMPTS}/en_US_f_Allison/digits/{{}}.wav"),
    "es-allison": ("asterisk-core-sounds-es-wav", f"{PROMPTS}/es_MX_f_Allison/digits/{{}}.wav"),
    "fr-june": ("asterisk-core-sounds-fr-wav", f"{PROMPTS}/fr_CA_f_June/digits/{{}}.wav"),
    "it-carlo": ("asterisk-core-sounds-it-wav", f"{PROMPTS}/it_IT_m_Carlo/digits/{{}}.wav"),
    "ru-ivrvoice": ("asterisk-core-sounds-ru-wav", f"{PROMPTS}/ru_RU_f_IvrvoiceRU/digits/{{}}.wav"),
    "es-colombia": ("asterisk-prompt-es-co", f"{PROMPTS}/es/digits/{{}}.gsm"),
    "fr-armelle": ("asterisk-prompt-fr-armelle", f"{PROMPTS}/fr/digits/{{}}.gsm"),
    "it-menardi": ("asterisk-prompt-it-menardi-wav", f"{PROMPTS}/it_IT_f_Menardi/digits/{{}}.wav"),
    "en-stamps-us": ("tuxpaint-stamps-default", f"{STAMPS}/{{}}.ogg"),
    "en-stamps-gb": ("tuxpaint-stamps-default", f"{STAMPS}/{{}}_en_GB.ogg"),
    "es-stamps": ("tuxpaint-stamps-default", f"{STAMPS}/{{}}_es.ogg"),
    "fr-stamps": ("tuxpaint-stamps-default", f"{STAMPS}/{{}}_fr.ogg"),
    "it-stamps": ("tuxpaint-stamps-default", f"{STAMPS}/{{}}_it.ogg"),
    "ru-stamps": ("tuxpaint-stamps-default", f"{STAMPS}/{{}}_ru.ogg"),
}


class Item(NamedTuple):
    """One sound of a set: what it is, and the two things that a fair test keeps apart.

    group: what is held out: the kit, the soundfont, the speaker. cluster: what is drawn together for an interval: the kit, the
    program, the speaker.
    """

    file: str
    group: str
    label: str
    cluster: str
    sha256: str


def drums(folder: Path) -> None:
    """One-shots, copied."""
    for path in sorted((_unpacked("hydrogen-drumkits", folder) / "usr/share/hydrogen/data/drumkits").glob("*/*")):
        labels = [label for label, pattern in DRUMS.items() if re.search(pattern, path.stem.lower())]
        if path.suffix in {".wav", ".flac", ".aiff"} and len(labels) == 1:
            shutil.copyfile(path, _place(folder, "drums", path.parent.name, labels[0], path.name))


def instruments(folder: Path) -> None:
    """Notes, cut from one rendering for each soundfont."""
    slot = round(SLOT_S * NOTE_RATE_HZ)
    for soundfont in SOUNDFONTS:
        rendered, _ = soundfile.read(_rendered(soundfont, folder), dtype="int16")
        for number, (program, note) in enumerate(_score()):
            samples = rendered[number * slot : (number + 1) * slot]
            if len(samples) and np.abs(samples.mean(1)).max() >= SILENT * 2**15:
                place = _place(folder, "instruments", soundfont, FAMILIES[program // 8], f"{program:02}-{note}.flac")
                soundfile.write(place, samples, NOTE_RATE_HZ)


def digits(folder: Path) -> None:
    """0 to 9, copied; what is GSM without a header becomes wav."""
    for speaker, (package, pattern) in SPEAKERS.items():
        for digit in range(10):
            path = _unpacked(package, folder) / pattern.format(digit)
            if path.suffix == ".gsm":
                samples, rate_hz = soundfile.read(
                    path, dtype="int16", format="RAW", subtype="GSM610", samplerate=TELEPHONE_HZ, channels=1
                )
                soundfile.write(_place(folder, "digits", speaker, str(digit), f"{digit}.wav"), samples, rate_hz)
            elif path.exists():
                shutil.copyfile(path, _place(folder, "digits", speaker, str(digit), f"{digit}{path.suffix}"))


SETS: dict[str, Callable[[Path], None]] = {"drums": drums, "instruments": instruments, "digits": digits}


def items(name: str, folder: Path) -> list[Item]:
    """The list of a set, which is laid out first if it is not there yet."""
    listed = folder / f"{name}.json"
    if not listed.exists():
        shutil.rmtree(folder / name, ignore_errors=True)  # half of it, from a run that was cut short
        SETS[name](folder)
        found = [_item(path, folder) for path in sorted((folder / name).glob("*/*/*"))]
        listed.write_text(json.dumps([item._asdict() for item in found], indent=1, ensure_ascii=False), encoding="utf-8")
    found = [Item(**row) for row in json.loads(listed.read_text(encoding="utf-8"))]
    changed = [item.file for item in found if _sha256(folder / item.file) != item.sha256]
    if changed:
        raise SystemExit(f"{len(changed)} files are not those of {listed} (the first: {changed[0]}): delete {listed}")
    return found


def _item(path: Path, folder: Path) -> Item:
    name, group, label, file = path.relative_to(folder).parts
    cluster = f"program {file.partition('-')[0]}" if name == "instruments" else group
    return Item(path.relative_to(folder).as_posix(), group, label, cluster, _sha256(path))


def _place(folder: Path, name: str, group: str, label: str, file: str) -> Path:
    place = folder / name / group / label / file
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _score() -> list[tuple[int, int]]:
    """(program, note) of each slot."""
    return [(program, note) for program in range(8 * len(FAMILIES)) for note in NOTES]


def _midi() -> bytes:
    """The score as a standard MIDI file of one track: each note in a slot of its own, all sound off before the next."""
    track, waited = bytearray(), 0
    for program, note in _score():
        held, rest = round(HELD_S * TICKS_PER_S), round((SLOT_S - HELD_S) * TICKS_PER_S) - PAUSE_TICKS
        for ticks, event in (
            (waited, bytes([0xC0, program])),
            (0, bytes([0x90, note, 100])),
            (held, bytes([0x80, note, 0])),
            (rest, bytes([0xB0, 120, 0])),
        ):
            track += _variable(ticks) + event
        waited = PAUSE_TICKS
    track += _variable(waited) + b"\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01" + (TICKS_PER_S // 2).to_bytes(2, "big")
    return header + b"MTrk" + len(track).to_bytes(4, "big") + bytes(track)


def _variable(number: int) -> bytes:
    """A number as MIDI writes it, seven bits in a byte."""
    found = [number & 127]
    while number := number >> 7:
        found.insert(0, number & 127 | 128)
    return bytes(found)


def _rendered(soundfont: str, folder: Path) -> Path:
    """The wav of the score in a soundfont, made if it is not there yet."""
    package, file = SOUNDFONTS[soundfont]
    font, made = _unpacked(package, folder) / file, folder / "packages" / f"{soundfont}.wav"
    if not made.exists():
        score, draft = made.with_suffix(".mid"), made.with_suffix(".draft.wav")
        score.write_bytes(_midi())
        options = ["-ni", "-q", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(NOTE_RATE_HZ), "-F"]
        run_tool(["fluidsynth", *options, draft.name, str(font.absolute()), score.name], made.parent, needs=NEEDS)
        if not draft.exists():
            raise SystemExit(f"fluidsynth left no {draft}")
        draft.rename(made)
    return made


def _unpacked(package: str, folder: Path) -> Path:
    """The folder with the files of a package, fetched and checked if it is not there yet."""
    version, sha256 = PACKAGES[package]
    found = folder / "packages" / f"{package}_{version.replace(':', '%3a')}"
    if not found.exists():
        deb, draft = found.with_name(f"{found.name}_all.deb"), found.with_name(f"{found.name}.draft")
        deb.parent.mkdir(parents=True, exist_ok=True)
        if not deb.exists():
            run_tool(["apt-get", "download", "-qq", f"{package}={version}"], deb.parent, needs=NEEDS)
        if not deb.exists():
            raise SystemExit(f"apt-get download {package}={version} left no {deb}")
        if _sha256(deb) != sha256:
            raise SystemExit(f"{deb} has sha256 {_sha256(deb)}, expected {sha256}: delete it, and it is fetched again")
        run_tool(["dpkg-deb", "-x", deb.name, draft.name], deb.parent, needs=NEEDS)
        draft.rename(found)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where packages and sounds are kept")
    folder = parser.parse_args().folder
    for name in SETS:
        found = items(name, folder)
        print(f"{name}: {len(found)} sounds, {folder / name}.json has sha256 {_sha256(folder / f'{name}.json')}")
        for title, counts in _counts(found):
            print(f"  {title}: {', '.join(f'{key} {count}' for key, count in counts.most_common())}")


def _counts(found: Sequence[Item]) -> Iterator[tuple[str, Counter[str]]]:
    yield "labels", Counter(item.label for item in found)
    yield "groups", Counter(item.group for item in found)


if __name__ == "__main__":
    main()
