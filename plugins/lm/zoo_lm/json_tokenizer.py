"""A `tokenizer.json` of the library tokenizers, as `zoo.api.Tokenizer` wants one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from zoo.api import UsageError
from zoo.nn import check_expressions, check_text, check_token

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class JsonTokenizer:
    """Text -> ids without the start that some models want: put `start_id` before a prompt where yours does.

    Tokens are turned into bytes for the two ways that Llamas were written: the byte-level alphabet of GPT-2 (Llama 3), and "▁"
    for a space with `<0x0A>` for what has no token (Llama 2). The second puts a space before each text, and gives it back.
    """

    chat = None

    def __init__(self, path: Path, *, start_id: int | None, end_ids: tuple[int, ...], vocabulary: int) -> None:
        """Raises UsageError for a file that cannot be read, one of another kind, one with an expression of its own, or one with more tokens than the model."""
        check_expressions(path)
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
            decoder = json.dumps(json.loads(path.read_text(encoding="utf-8")).get("decoder"))
        except Exception as error:  # the library raises bare Exception
            raise UsageError(f"{path} is no readable tokenizer.json ({error})") from error
        self.byte_level = '"ByteLevel"' in decoder
        if not self.byte_level and '"ByteFallback"' not in decoder:
            raise UsageError(f"{path} must write tokens as ByteLevel or ByteFallback does, its decoder is {decoder:.80}")
        if self.tokenizer.get_vocab_size() > vocabulary:
            raise UsageError(
                f"{path} has {self.tokenizer.get_vocab_size()} tokens, the model has {vocabulary}: it is another's"
            )
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # "<|end|>" in a text is these characters, not the end
        self.vocabulary = vocabulary
        self.start_id, self.end_ids = start_id, end_ids
        added: dict[int, Any] = self.tokenizer.get_added_tokens_decoder()
        self.control = {*end_ids, *(token for token, entry in added.items() if entry.special)}
        self.plain: dict[int, str] = {token: entry.content for token, entry in added.items() if not entry.special}

    def encode(self, text: str) -> list[int]:
        """Raises UsageError for what is no str and for a lone surrogate."""
        check_text(text)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; U+FFFD for bytes that are no UTF-8, nothing for control tokens."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """Raises UsageError for an id outside the vocabulary; an id that the model has and the tokenizer lacks is empty."""
        check_token(token, self.vocabulary)
        if token in self.plain:
            return self.plain[token].encode()
        written = self.tokenizer.id_to_token(token)
        if written is None or token in self.control or token == self.start_id:
            return b""
        if self.byte_level:
            return bytes(BYTES[character] for character in written)
        byte = BYTE_TOKEN.fullmatch(written)
        return bytes([int(byte[1], 16)]) if byte else written.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The character that GPT-2 writes for each byte: printable ones are themselves, the others follow from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_alphabet()
