"""Numbers of every command: at their limit they are taken; beyond it, far beyond it, and where they are none, one line says so."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import zoo as library
from zoo.cli import COMMANDS, parser
from zoo.errors import UsageError
from zoo.media.audio import Sound, open_audio
from zoo.tasks.transcription import RunOptions
from zoo.training.fit import FitOptions

NO_NUMBERS = ("", "ten", "nan", "inf", "-inf", "1e400", "9" * 5_000, "0x10", "1,5")
TEXT = ("--model", "smollm/tiny", "--weights", "none")
DUAL = ("--model", "clip/tiny", "--weights", "none")
HEARING = ("--model", "whisper/random", "--weights", "none", "--temperature", "0", "--language", "en")


def numbers_of(command: str) -> list[tuple[tuple[str, ...], str]]:
    """(words, option) of every option of a command and of its actions that takes a number."""
    root = parser([command])
    (commands,) = (action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    found: list[tuple[tuple[str, ...], str]] = []
    waiting = [((command,), commands.choices[command])]
    while waiting:
        words, one = waiting.pop()
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [((*words, name), choice) for name, choice in action.choices.items()]
            elif action.option_strings and action.type is not None and action.type is not Path:
                found.append((words, action.option_strings[-1]))
    return found


@pytest.mark.covers("A21")
@pytest.mark.parametrize("command", [*COMMANDS, "speech"])
def test_what_is_no_number_is_one_line_in_the_words_of_the_command(main, command: str) -> None:
    for words, option in numbers_of(command):
        for given in (
            NO_NUMBERS if command != "speech" else ("", "ten", "0x10", "1,5")
        ):  # argparse's own are all that a plugin has
            run = main(*words, f"{option}={given}")
            assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), (
                words,
                option,
                given[:9],
                run.stderr[-300:],
            )
            assert run.stderr.startswith(f"zoo {' '.join(words)}: argument {option}: "), run.stderr[:200]


def test_there_are_numbers_in_most_commands() -> None:
    found = {words[0]: len(numbers_of(words[0])) for words in ((name,) for name in COMMANDS)}
    assert found["generate"] >= 11
    assert found["transcribe"] >= 13
    assert sum(found.values()) > 45


FAR = (2**31, 2**63, 2**64, 10**30)
BASES: dict[str, tuple[str, ...]] = {
    "generate": ("generate", "x", *TEXT),
    "drawing": ("generate", "x", *TEXT, "--max-tokens", "2", "--temperature", "1"),
    "classify": ("classify", "a.png", "--labels", "a,b", *DUAL),
    "embed": ("embed", "a.png", "--out", "e.npz", *DUAL),
    "search": ("search", "folder", "a cat", *DUAL),
    "filter": ("filter", "folder", "--dry-run", *DUAL),
    "cut": ("filter", "folder", "--out", "kept", *DUAL),
    "transcribe": ("transcribe", "a.wav", *HEARING),
    "train": ("adapt", "train", "a.jsonl", "--out", "a.safetensors", *TEXT),
    "compose": ("compose", "--decoder", "smollm/tiny", "--encoder", "image=clip/tiny-image", "--bridge", "perceiver/resampler-tiny",
                "--weights", "none", "--out", "composed"),
    "doctor": ("doctor",),
    "speech": ("speech", "a.wav"),
}  # fmt: skip
REFUSED: list[tuple[str, str, tuple[float, ...]]] = [
    *((name, "--threads", (0, -1, 1_025, *FAR)) for name in ("generate", "classify", "embed", "search", "filter", "transcribe", "train")),
    *((name, "--seed", (2**63, -(2**63) - 1, 2**64, 10**30)) for name in ("generate", "classify", "train", "compose", "transcribe")),
    *((name, "--batch-size", (0, -1, -(2**63))) for name in ("classify", "embed", "search", "filter", "train")), ("transcribe", "--batch-size", (0,)),
    ("generate", "--max-tokens", (-1, -(2**63))), ("generate", "--beams", (0, -1)), ("drawing", "--samples", (0, -1, 1_001, *FAR)),
    ("drawing", "--top-k", (0, -1)), ("drawing", "--top-p", (0, 1.01, -1, 2**63)), ("drawing", "--min-p", (-0.1, 1.01, 2**63)),
    ("drawing", "--temperature", (-0.1, -(2**63))), ("drawing", "--repetition-penalty", (0, -1)),
    ("generate", "--length-penalty", (-0.1, 10.1, 2**63)),
    ("classify", "--top", (0, -1)), ("search", "--top", (0, -1)), ("cut", "--threshold", (-1.01, 1.01, 2**63)),
    ("transcribe", "--beam-size", (0, 257, 2**63)), ("transcribe", "--best-of", (0, 257)), ("transcribe", "--max-initial-timestamp", (-1, 30.1)),
    ("transcribe", "--length-penalty", (-0.1, 1.1)), ("transcribe", "--max-duration", (0, -1)), ("speech", "--max-duration", (0, -1)),
    ("speech", "--threshold", (-0.1, 1.1, 2**63, float("nan"))), ("speech", "--max-duration", (float("nan"),)),
    ("train", "--steps", (0, -1, *FAR)), ("train", "--learning-rate", (0, -1)), ("train", "--held-out", (-0.1, 1, 2**63)),
    ("compose", "--every", (0, 3, 2**63)), ("doctor", "--timeout-s", (0, -1, 86_401, *FAR)),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "folder" / "a.png"):
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "folder" / "a.txt").write_text("a cat")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "{number}", "completion": "b"}}\n' for number in range(12)))
    soundfile.write(tmp_path / "a.wav", np.zeros(8_000, np.float32), 16_000)
    return tmp_path


@pytest.mark.covers("A21")
@pytest.mark.parametrize(("base", "option", "values"), REFUSED, ids=lambda one: one if isinstance(one, str) else "")
def test_beyond_its_limits_a_number_is_refused_in_one_line(
    main, here: Path, base: str, option: str, values: tuple[float, ...]
) -> None:
    for value in values:
        run = main(*BASES[base], f"{option}={value}")
        about = [
            line for line in run.stderr.splitlines() if "random weights" not in line and line != "zoo: 0 texts, 1 image"
        ]
        assert (run.returncode, run.stdout, len(about)) == (2, "", 1), (value, run.stderr)
        assert about[0].startswith("zoo"), run.stderr
        name = option.removeprefix("--")
        assert name in about[0] or name.replace("-", "_") in about[0] or name.split("-")[0] in about[0], about[0]
        assert len(about[0]) < 500
    left = {"a.png", "folder", "a.jsonl", "a.wav", ".state", "config.toml"}
    assert {path.name for path in here.iterdir()} <= left, "nothing was begun"


AT_THE_LIMIT = [
    ("generate", ("--max-tokens", "0")), ("generate", ("--max-tokens", str(2**63))), ("generate", ("--max-tokens", "1", "--beams", str(2**63))),
    ("drawing", ("--top-k", "1")), ("drawing", ("--top-k", str(2**63))), ("drawing", ("--top-p", "1")), ("drawing", ("--top-p", "1e-320")),
    ("drawing", ("--min-p", "0")), ("drawing", ("--min-p", "1")), ("drawing", ("--temperature", "1e-320")), ("drawing", ("--temperature", "1e300")),
    ("drawing", ("--repetition-penalty", "1e-320")), ("drawing", ("--repetition-penalty", "1e300")), ("drawing", ("--seed", str(2**63 - 1))),
    ("drawing", ("--seed", str(-(2**63)))), ("classify", ("--top", str(2**64))), ("classify", ("--batch-size", str(2**64))),
    ("search", ("--top", str(2**64))), ("cut", ("--threshold", "-1")), ("train", ("--steps", "1", "--batch-size", str(2**64))),
]  # fmt: skip


@pytest.mark.covers("A21")
@pytest.mark.parametrize(
    ("base", "words"), AT_THE_LIMIT, ids=lambda one: one if isinstance(one, str) else " ".join(one)[:24]
)
def test_at_its_limits_a_number_is_taken(main, here: Path, base: str, words: tuple[str, ...]) -> None:
    run = main(*BASES[base], *words)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.covers("A21")
def test_python_refuses_the_same_numbers() -> None:
    nan: Any = float("nan")
    for call in (
        lambda: RunOptions(max_duration_s=nan),
        lambda: RunOptions(max_decode_s=0),
        lambda: open_audio(Sound(np.zeros(9, np.float32), 16_000), max_duration_s=nan),
        lambda: open_audio(Sound(np.zeros(9, np.float32), 16_000), max_decode_s=-1),
        lambda: FitOptions(steps=2**63),
        lambda: FitOptions(steps=1, learning_rate=nan),
        lambda: FitOptions(steps=1, learning_rate=float("inf")),
        lambda: library.Sampling(temperature=nan),
        lambda: library.Sampling(top_p=nan),
        lambda: library.Sampling(repetition_penalty=float("inf")),
    ):
        with pytest.raises(UsageError) as raised:
            call()
        assert "\n" not in str(raised.value)
    model = library.open_model("whisper/random", weights=None)
    sound = Sound(np.zeros(8_000, np.float32), 16_000)
    for name in ("logprob_threshold", "no_speech_threshold", "compression_ratio_threshold", "length_penalty", "patience"):
        options: dict[str, Any] = {name: nan, "language": "en", "temperature": 0.0}
        with pytest.raises(UsageError, match=name):
            library.transcribe(
                sound, model=model, **options, **({"beam_size": 2} if name in ("length_penalty", "patience") else {})
            )


def test_a_number_may_be_a_part_of_json_and_stays_one(main, here: Path) -> None:
    run = main(*BASES["drawing"], "--temperature", "1e-320", "--json")
    greedy = main(*BASES["generate"], "--max-tokens", "2", "--json")
    assert json.loads(run.stdout)["results"][0]["text"] == json.loads(greedy.stdout)["results"][0]["text"], (
        "as good as greedy"
    )
