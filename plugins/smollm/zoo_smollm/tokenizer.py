"""Text -> token ids and back, with the byte-pair encoding that a GGUF file carries in its metadata.

A byte-pair encoding over bytes (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), each byte written
as one printable character. The control tokens are no part of the encoder's vocabulary, so that no text, whatever it says, can
become one; they enter through `chat` alone. The reference is llama.cpp; the library tokenizers does the work.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as InTurn

from zoo.api import UsageError, WeightsError, settings_of
from zoo.nn import BYTES, check_text, check_token
from zoo_smollm.chat import END_TURN, START_TURN, chat_ids, is_known_template

SPLITTINGS = ("smollm",)  # tokenizer.ggml.pre: how text is cut before pairs of bytes are joined
NORMAL, CONTROL = 1, 3  # kinds of token in GGUF
END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
)  # of a turn and, in the texts that the model was trained on first, of a document


def _byte_characters() -> dict[int, int]:
    """The printable character that stands for each byte -> that byte; itself where it is printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {byte: byte for byte in printable} | {BYTES + number: byte for number, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()


def open_tokenizer(path: Path) -> "GgufTokenizer":
    """The tokenizer in the metadata of a GGUF file.

    Raises WeightsError for a file that cannot be read, for another kind of tokenizer or way to cut text than the ones known
    here, for one that puts a token before or after each text, and for a vocabulary that contradicts itself.
    """
    metadata = settings_of(path)
    model, splitting = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if not isinstance(model, str) or model != "gpt2":  # an array of numbers would compare one by one
        raise WeightsError(
            f"{path} has tokenizer.ggml.model {_shown(model)}, only 'gpt2' (byte-pair encoding) is known here"
        )
    if not isinstance(splitting, str) or splitting not in SPLITTINGS:
        raise WeightsError(
            f"{path} has tokenizer.ggml.pre {_shown(splitting)}, only {', '.join(map(repr, SPLITTINGS))} is known here: "
            f"cut in another way, text would become other tokens than the model was trained on"
        )
    added = [
        key for key in ("add_bos_token", "add_eos_token") if metadata.get(f"tokenizer.ggml.{key}") not in (None, False)
    ]
    if added:
        raise WeightsError(
            f"{path} has tokenizer.ggml.{added[0]} {_shown(metadata[f'tokenizer.ggml.{added[0]}'])}: its model was trained on texts with a "
            f"token that is not put there here"
        )
    tokens, control = _vocabulary(path, metadata)
    numbers = {token: number for number, token in enumerate(tokens) if number not in control}
    tokenizer = Tokenizer(BPE(numbers, _merges(path, metadata, numbers)))
    tokenizer.pre_tokenizer = InTurn(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True, trim_offsets=False)]
    )
    return GgufTokenizer(tokenizer, tokens, control, metadata, path)


class GgufTokenizer:
    """A byte-pair encoding with control tokens; see `zoo.api.Tokenizer`. Made by `open_tokenizer`.

    `pad_id` is what the publisher fills batches with; masked, it may be anything.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: tuple[str, ...],
        control: frozenset[int],
        metadata: Mapping[str, Any],
        path: Path,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._control = control
        self.vocabulary = len(tokens)
        named = {tokens[number]: number for number in sorted(control)}
        self.start_id: int | None = _control_id(path, metadata, "bos", control)
        ends = [_control_id(path, metadata, "eos", control), *(named.get(token) for token in END_TOKENS)]
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(number for number in ends if number is not None))
        self.pad_id: int | None = _control_id(path, metadata, "padding", control)
        self.chat: Callable[[Sequence[tuple[str, str]]], list[int]] | None = None
        template = metadata.get("tokenizer.chat_template")
        if template is not None and is_known_template(template) and {START_TURN, END_TURN} <= named.keys():
            self.chat = partial(chat_ids, encode=self.encode, start_turn=named[START_TURN], end_turn=named[END_TURN])
        elif template is not None:
            self.chat = partial(_refuse_chat, str(path))

    def encode(self, text: str) -> list[int]:
        """A text's ids; none of them is a control token's, even where the text reads like one.

        A byte that the vocabulary lacks is left out, as llama.cpp does (SmolLM2's has no 0x04, 0x06, 0x13, 0x14, 0x16, 0x1D,
        and none that begin the unassigned planes of Unicode). Raises UsageError for what is no str or no valid Unicode.
        """
        check_text(text)
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens left out; U+FFFD for what is no UTF-8. Raises UsageError for ids out of range."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, none for a control token. Raises UsageError for an id out of range."""
        check_token(token, self.vocabulary)
        return b"" if token in self._control else self._tokens[token].translate(BYTE_CHARACTERS).encode("latin-1")


def _vocabulary(path: Path, metadata: Mapping[str, Any]) -> tuple[tuple[str, ...], frozenset[int]]:
    """All tokens in the order of their ids, and the ids of the control tokens."""
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, tuple) or not tokens:
        raise WeightsError(f"{path} has no tokenizer.ggml.tokens, a list of texts: take a file that carries its tokenizer")
    kinds = getattr(kinds, "tolist", list)()  # an array of numbers, if it is there at all
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise WeightsError(f"{path} must have a tokenizer.ggml.token_type for each of its {len(tokens):,} tokens")
    if set(kinds) - {NORMAL, CONTROL}:
        raise WeightsError(
            f"{path} has tokens of the kinds {sorted(set(kinds))}, only {NORMAL} (normal) and {CONTROL} (control) are known here"
        )
    if len(set(tokens)) != len(tokens):
        raise WeightsError(f"{path} has {len(tokens):,} tokens, but only {len(set(tokens)):,} different ones")
    control = frozenset(number for number, kind in enumerate(kinds) if kind == CONTROL)
    strange = {character for number, token in enumerate(tokens) if number not in control for character in token}
    strange -= set(map(chr, BYTE_CHARACTERS))
    if strange:
        raise WeightsError(f"{path} has a token with {min(strange)!r}, which stands for no byte in the encoding of gpt2")
    return tokens, control


def _merges(path: Path, metadata: Mapping[str, Any], numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs that are joined, first come first joined. All is checked here: of a stranger the library panics."""
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, tuple):
        raise WeightsError(f"{path} has no tokenizer.ggml.merges, a list of texts: take a file that carries its tokenizer")
    pairs = []
    for number, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise WeightsError(
                f"{path} must have two texts with a space between as a merge, number {number} is {_shown(merge)}"
            )
        if left not in numbers or right not in numbers or left + right not in numbers:
            raise WeightsError(f"{path} has the merge {_shown(merge)}, one of whose parts or whose sum is no normal token")
        pairs.append((left, right))
    return pairs


def _control_id(path: Path, metadata: Mapping[str, Any], role: str, control: frozenset[int]) -> int | None:
    """tokenizer.ggml.<role>_token_id, where the file has one."""
    number = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if number is not None and (type(number) is not int or number not in control):
        raise WeightsError(
            f"{path} has tokenizer.ggml.{role}_token_id {_shown(number)}, which is no control token of its own"
        )
    return number


def _shown(value: object) -> str:
    """A value of the metadata, short enough for one line."""
    return f"{value!r:.80}" if isinstance(value, (str, int, float, type(None))) else f"of {type(value).__name__}"


def _refuse_chat(path: str, _: Sequence[tuple[str, str]]) -> list[int]:
    raise UsageError(
        f"{path} has a chat template other than SmolLM2-Instruct's, and a program in a weight file is not run: "
        f"write the prompt out as one text, or use the weights of `zoo fetch smollm/135m-instruct`"
    )
