"""Every model of sounds that is small enough keeps what the conformance kit asks."""

import pytest

from zoo.registry.lookup import Registry, cards
from zoo.registry.modality import AUDIO
from zoo.registry.settings import load_settings
from zoo.testing import Subject
from zoo.testing.check import run_check
from zoo.testing.runner import checks_for

LARGEST = 2_000_000  # parameters: the larger cards are the same code in other sizes
SMALL = [card.name for card in cards() if card.modalities == (AUDIO,) and card.parameters < LARGEST]
SLOW = ("process",)  # each starts an interpreter: `zoo check` does


def test_there_are_encoders_and_a_transcriber() -> None:
    assert {"audio/statistics", "audio/silero-vad", "whisper/random", "whisper/random-encoder"} <= set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_it_keeps_what_the_kit_asks(name) -> None:
    registry = Registry(load_settings())
    found = registry.find(name)
    subject = Subject(found, registry.owner(found.card), registry)
    checks = [check for check in checks_for(found.card.kind, found.card.modalities) if check.level not in SLOW]
    results = [run_check(check, subject) for check in checks]
    assert not [f"{result.check}: {result.message}" for result in results if result.status == "failed"]
    assert sum(result.status == "passed" for result in results) >= 8
