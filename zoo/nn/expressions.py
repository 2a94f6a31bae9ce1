"""Which expressions of a tokenizer's file may be run: those whose time grows with the text alone, and those of published models.

An expression is a small program, and `(a+)+$` one that takes longer than anybody lives for a text of a hundred characters
(CVE-2025-1194). One that never has to go back takes each character once: after the first part that repeats without a limit, nothing
may be required any more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

# How published models cut a text before its tokens are looked up, with parts that go back, and take time in proportion to the text.
PUBLISHED = (
    " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)
FEW = 8  # parts of one alternative that may be longer or shorter, and how often one repeats that counts as limited
_CHARACTERS = (
    r"\\[pP]\{\^?\w+\}|\\[dDsSwWhHrntfv.\\+*?()\[\]{}|/^$-]|\[\^?(?:\\[pP]\{\^?\w+\}|\\.|[^\]\[\\])+\]|[^\\\[\](){}|*+?^$]"
)
_CHARACTER = re.compile(_CHARACTERS)
_GROUP = re.compile(r"\((?:\?[a-z]*:)?[^()*+{}\\]*\)")  # words to choose from
_REPEATED = re.compile(r"(?:[?*+]|\{(?P<least>\d{1,3})(?:,(?P<most>\d{0,3}))?\})[?+]?")


def may_run(expression: object) -> bool:
    """Whether each alternative of an expression goes through a text without going back, or is one of a published model's."""
    if not isinstance(expression, str):
        return False
    return expression in PUBLISHED or all(one in _KNOWN or _goes_forward(one) for one in alternatives(expression))


def alternatives(expression: str) -> Iterator[str]:
    """The parts between the bars that stand in no group and no class."""
    depth, start, at = 0, 0, 0
    while at < len(expression):
        character = _CHARACTER.match(expression, at) if expression[at] in "\\[" else None
        depth += {"(": 1, ")": -1}.get(expression[at], 0)
        if expression[at] == "|" and depth == 0:
            yield expression[start:at]
            start = at + 1
        at = character.end() if character else at + 1
    yield expression[start:]


def _goes_forward(alternative: str) -> bool:
    at, endless, choices = 0, False, 0
    while at < len(alternative):
        group = _GROUP.match(alternative, at)
        part = group or _CHARACTER.match(alternative, at)
        if part is None:
            return False
        least, most, at = _times(alternative, part.end())
        choices += least != most
        if (endless and least > 0) or (group and most > 1) or choices > FEW:
            return False
        endless = endless or (least != most and most > FEW)
    return True


def _times(alternative: str, at: int) -> tuple[float, float, int]:
    """How often at least and at most the part before a place is repeated, and where that ends."""
    found = _REPEATED.match(alternative, at)
    if found is None:
        return 1, 1, at
    sign = found[0][0]
    if sign != "{":
        return int(sign == "+"), 1 if sign == "?" else math.inf, found.end()
    least = int(found["least"])
    most = least if found["most"] is None else int(found["most"]) if found["most"] else math.inf
    return least, most, found.end()


_KNOWN = frozenset(one for expression in PUBLISHED[1:] for one in alternatives(expression))
