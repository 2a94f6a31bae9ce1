"""The numbers of Whisper's control tokens, which follow from the size of its vocabulary, and the languages they stand for.

After the text come the end of a text, the start of a transcript, one token for each language, the tasks, and 1,501 moments: every
0.02 s of a window. The numbering and the languages are those of `whisper/tokenizer.py` in openai-whisper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zoo.api import UsageError
from zoo_whisper.openai_package import openai_whisper

MOMENTS = 1501
SECONDS_PER_MOMENT = 0.02
CONTROLS_BESIDE_LANGUAGES = (
    8  # end, start, translate, transcribe, start of a language model, of what came before, no speech, no moments
)
SMALLEST_VOCABULARY = 51_864  # of the models for English alone
LARGEST_VOCABULARY = 51_866


def languages() -> Mapping[str, str]:
    """Code -> name, in the order of their tokens: a model has the first 99 of them, or all 100."""
    table: Mapping[str, str] = openai_whisper().tokenizer.LANGUAGES
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Token ids. `languages` maps each code that the model has to its token; empty for a model of English alone."""

    end: int
    start: int
    languages: Mapping[str, int]
    translate: int
    transcribe: int
    start_of_language_model: int
    start_of_previous: int
    no_speech: int
    no_moments: int
    first_moment: int

    @property
    def multilingual(self) -> bool:
        return bool(self.languages)

    def opening(self, language: str | None, task: str) -> list[int]:
        """What every transcript begins with."""
        if not self.multilingual:
            return [self.start]
        return [
            self.start,
            self.languages[language or "en"],
            self.translate if task == "translate" else self.transcribe,
        ]


def controls(vocabulary: int) -> Controls:
    """The control tokens of a model with so many tokens. Raises UsageError for a number that no Whisper has."""
    if not SMALLEST_VOCABULARY <= vocabulary <= LARGEST_VOCABULARY:
        raise UsageError(
            f"a Whisper has a vocabulary of {SMALLEST_VOCABULARY:,} (English) to {LARGEST_VOCABULARY:,} tokens, got {vocabulary:,}"
        )
    multilingual = vocabulary > SMALLEST_VOCABULARY
    count = vocabulary - SMALLEST_VOCABULARY + 98 if multilingual else 99
    first_moment = vocabulary - MOMENTS
    start = first_moment - CONTROLS_BESIDE_LANGUAGES - count + 1
    after = start + 1 + count
    return Controls(
        end=start - 1,
        start=start,
        languages={code: start + 1 + number for number, code in enumerate(list(languages())[:count])}
        if multilingual
        else {},
        translate=after,
        transcribe=after + 1,
        start_of_language_model=after + 2,
        start_of_previous=after + 3,
        no_speech=after + 4,
        no_moments=after + 5,
        first_moment=first_moment,
    )


def language_code(given: str, known: Mapping[str, int]) -> str:
    """A language by name or code, in capitals or not -> its code ("German" -> "de"). Raises UsageError, with what there is."""
    folded = given.strip().casefold().replace("-", " ")
    names = languages()
    code = folded if folded in names else openai_whisper().tokenizer.TO_LANGUAGE_CODE.get(folded, "")
    if code not in known:
        import difflib

        near = difflib.get_close_matches(folded, [*known, *(names[each] for each in known)], 3, 0.6)
        hint = f"; near to it: {', '.join(near)}" if near else ""
        raise UsageError(f"no language {given!r} among the {len(known)} of this model (as en, de or german){hint}")
    return code
