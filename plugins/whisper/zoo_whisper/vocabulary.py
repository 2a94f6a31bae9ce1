"""Text -> Whisper's tokens and back: GPT-2's byte-level BPE, from a `tokenizer.json` of the library tokenizers or a `.tiktoken`.

Of the one the vocabulary and the merges are used, and none of its control tokens: whatever a user writes is text. The other holds a
token a line, in the order in which merges made them.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from zoo.api import UsageError

Merges = list[tuple[str, str]]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "my", "yue")  # languages that put none between words
# What is written for speakers, noises and music rather than spoken (`non_speech_tokens` in openai-whisper's tokenizer.py).
UNSPOKEN = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))", "[[", "]]", "{{", "}}"),
    *("♪♪", "♪♪♪"),
)
NOTES = "♩♪♫♬♭♮♯"  # their first token is enough: symbols alone share it


class Vocabulary:
    """`encode`, `decode` and what else of a text its tokens decide. Made by `open_vocabulary`."""

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes]) -> None:
        self.tokenizer = tokenizer
        self.tokens = tuple(tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of any text. Raises UsageError for a str that is no valid Unicode."""
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # the library's only complaint about a str
            raise UsageError("a text must be valid Unicode, got a lone surrogate: decode it as UTF-8") from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of its tokens; control tokens have none, and bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.tokens[token] for token in ids if token < len(self.tokens)).decode("utf-8", "replace")

    def unspoken(self) -> list[int]:
        """Tokens to suppress, so that nothing is written that nobody said. Hyphen and apostrophe stay, but not to begin a word."""
        found = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in (*UNSPOKEN, *NOTES):
            for ids in (self.encode(symbol), self.encode(f" {symbol}")):
                if len(ids) == 1 or symbol in NOTES:
                    found.add(ids[0])
        return sorted(found)

    def words(self, ids: Sequence[int], language: str | None) -> list[tuple[str, list[int]]]:
        """Text tokens -> words with their tokens, whole characters at least; a word brings the space before it."""
        pieces = self._characters(ids)
        if language in WITHOUT_SPACES:
            return pieces
        words: list[tuple[str, list[int]]] = []
        for text, tokens in pieces:
            alone = text.startswith(" ") or text.strip() in string.punctuation or not words
            if alone:
                words.append((text, tokens))
            else:
                words[-1] = (words[-1][0] + text, words[-1][1] + tokens)
        return words

    def _characters(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The shortest runs of tokens that are whole characters. A character that the text itself has damaged counts as whole."""
        whole = self.decode(ids)
        pieces, held, offset = [], list[int](), 0
        for token in ids:
            held.append(token)
            text = self.decode(held)
            place = text.find(REPLACEMENT)
            if place < 0 or whole[offset + place : offset + place + 1] == REPLACEMENT:
                pieces.append((text, held))
                held, offset = [], offset + len(text)
        return pieces


def open_vocabulary(path: Path | None, text_tokens: int) -> Vocabulary:
    """Read the file of a vocabulary; its first `text_tokens` ids are text. None: a token for each byte, for models without weights.

    Raises UsageError for a file that cannot be read and one of another model.
    """
    if path is None:
        entries = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
        merges: Merges = []
    else:
        try:
            content = path.read_bytes()
            entries, merges = (_from_json if content.lstrip()[:1] == b"{" else _from_tiktoken)(content, text_tokens)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UsageError(
                f"tokenizer_path must be a readable tokenizer.json of a BPE, or a .tiktoken, got {path} ({error})"
            ) from error
        if sorted(entries.values()) != list(range(text_tokens)):
            raise UsageError(f"{path} has {len(entries):,} text tokens, the model {text_tokens:,}: it is another model's")
    strange = next((pair for pair in merges if not {*pair, "".join(pair)} <= entries.keys()), None)
    if strange is not None:
        raise UsageError(
            f"{path} is no byte-level BPE: it merges {strange} without a token for them and for what they make"
        )
    by_character = _byte_of_character()
    tokens = [b""] * len(entries)
    try:
        tokenizer = Tokenizer(BPE(entries, merges))
        for text, number in entries.items():
            tokens[number] = bytes(by_character[character] for character in text)
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"{path} is no byte-level BPE ({type(error).__name__}: {error})") from error
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return Vocabulary(tokenizer, tokens)


def _from_json(content: bytes, text_tokens: int) -> tuple[dict[str, int], Merges]:
    """Token -> id, and the merges, of a tokenizer.json."""
    model = json.loads(content)["model"]
    entries = {text: number for text, number in model["vocab"].items() if number < text_tokens}
    return entries, _complete([(pair[0], pair[1]) for pair in (_pair(merge) for merge in model["merges"])], entries)


def _from_tiktoken(content: bytes, text_tokens: int) -> tuple[dict[str, int], Merges]:
    """As `_from_json`, of lines of a token in base64 and its id. What made a token is what merging leaves when it may not be made."""
    ids = {}
    for line in content.splitlines():
        encoded, _, rank = line.partition(b" ")
        ids[base64.b64decode(encoded)] = int(rank)
    character = {byte: text for text, byte in _byte_of_character().items()}
    written = {token: "".join(character[byte] for byte in token) for token in ids}
    merges = []
    for token, number in sorted(ids.items(), key=lambda entry: entry[1]):
        if len(token) > 1:
            first, second = _halves(token, number, ids)
            merges.append((written[first], written[second]))
    return {written[token]: number for token, number in ids.items() if number < text_tokens}, merges


def _halves(token: bytes, number: int, ids: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that the merges before number `number` leave of a token. Raises ValueError for any other count."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        made = [ids.get(left + right, number) for left, right in pairwise(parts)]
        place = min(range(len(made)), key=made.__getitem__)
        if made[place] >= number:
            raise ValueError(f"token {number} is made of {len(parts)} others")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _complete(merges: Merges, entries: Mapping[str, int]) -> Merges:
    """The merges in the order of what they make. Published files lost the very first, of a blank and a t: " two" fell apart."""
    made = {first + second for first, second in merges}
    lost = [(text[0], text[1]) for text, number in entries.items() if len(text) == 2 and number >= 256 and text not in made]
    return sorted((*lost, *merges), key=lambda pair: entries.get(pair[0] + pair[1], len(entries)))


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ", 1) if isinstance(merge, str) else merge


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(others)}
