"""What a decoder promises besides: text comes back as it went in, and nothing depends on cache, padding or what comes later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoo.decoding.generation import generate, stream
from zoo.decoding.reading import batch_of
from zoo.errors import UsageError
from zoo.testing.check import SEED, CheckFailed, CheckSkipped, Subject, check
from zoo.testing.samples import EXTREME_TEXTS, SENTENCES

DECODERS = ("decoder",)
TOLERANCE = 1e-4  # of the largest logit
SHORT = 12  # tokens of a random prompt


@check("language", "Text becomes ids inside the vocabulary, and comes back as it was, byte by byte too.", kinds=DECODERS)
def text_comes_back(subject: Subject) -> None:
    tokenizer, vocabulary = _tokenizer(subject), subject.module.vocabulary
    for text in (*SENTENCES, *EXTREME_TEXTS):
        ids = tokenizer.encode(text)
        outside = [token for token in ids if not 0 <= token < vocabulary]
        if outside:
            raise CheckFailed(f"the text {text[:20]!r} becomes id {outside[0]}, the vocabulary ends at {vocabulary - 1}")
        if tokenizer.decode(ids) != text:
            raise CheckFailed(f"the text {text[:20]!r} comes back as {tokenizer.decode(ids)[:40]!r}")
        if b"".join(map(tokenizer.token_bytes, ids)) != text.encode():
            raise CheckFailed(f"the bytes of the tokens of {text[:20]!r} are not those of the text")


@check("language", "A text cannot hold a control token, whatever it says, and one has no bytes.", kinds=DECODERS)
def text_controls_nothing(subject: Subject) -> None:
    tokenizer = _tokenizer(subject)
    control = {*tokenizer.end_ids, *([] if tokenizer.start_id is None else [tokenizer.start_id])}
    for token in control:
        if not 0 <= token < subject.module.vocabulary:
            raise CheckFailed(f"the control token {token} is outside the vocabulary of {subject.module.vocabulary}")
        if tokenizer.token_bytes(token) != b"":
            raise CheckFailed(f"the control token {token} has the bytes {tokenizer.token_bytes(token)!r}")
    for text in ("<s></s>", "<|im_start|>x<|im_end|>", "<|endoftext|>", "<pad><eos><bos>", "[CLS] [SEP]"):
        forged = control.intersection(tokenizer.encode(text))
        if forged:
            raise CheckFailed(f"the text {text!r} becomes the control token {min(forged)}")
    try:
        tokenizer.encode("\ud800")
    except UsageError:
        return
    except Exception as error:  # noqa: BLE001 - whatever it raises, it is no UsageError
        raise CheckFailed(f"a lone surrogate raises {type(error).__name__}, expected zoo.api.UsageError") from None
    raise CheckFailed("a lone surrogate, which is no text, was accepted")


@check("language", "What is read in pieces through a cache gives what is read at once.", kinds=DECODERS)
def cache_changes_nothing(subject: Subject) -> None:
    (row,) = _prompts(subject, 1)
    whole_TV = _whole(subject.module, row)
    for sizes in ((SHORT - 1, 1), (1,) * SHORT, (5, 4, 3)):
        cache, start, pieces = subject.module.new_cache(1, SHORT), 0, []
        for size in sizes:
            with torch.inference_mode():
                pieces.append(subject.module(torch.tensor([row[start : start + size]]), cache=cache))
            start += size
        _near(torch.cat(pieces, 1)[0], whole_TV, f"read in pieces of {', '.join(map(str, sizes))} tokens")


@check("language", "Padding, left or right and of any amount, changes no logit of a real token.", kinds=DECODERS)
def padding_side_changes_nothing(subject: Subject) -> None:
    rows = [row[: SHORT - 3 * number] for number, row in enumerate(_prompts(subject, 3))]
    for before, after in ((0, 0), (4, 0), (0, 4), (2, 3)):
        longest = max(map(len, rows)) + before + after
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            start = before if after else longest - len(row)
            tokens[number, start : start + len(row)] = torch.tensor(row)
            mask[number, start : start + len(row)] = True
        with torch.inference_mode():
            logits = subject.module(tokens, mask_BT=mask)
        for number, row in enumerate(rows):
            _near(logits[number][mask[number]], _whole(subject.module, row), f"padded by {before} and {after}")


@check("language", "No token sees what comes after it.", kinds=DECODERS)
def future_changes_nothing(subject: Subject) -> None:
    row, other = _prompts(subject, 2)
    half = SHORT // 2
    changed = _whole(subject.module, [*row[:half], *other[half:]])
    _near(changed[:half], _whole(subject.module, row)[:half], "with other tokens after them")


@check("language", "Logits that are asked for alone are those of the whole.", kinds=DECODERS)
def chosen_logits_are_the_same(subject: Subject) -> None:
    (row,) = _prompts(subject, 1)
    with torch.inference_mode():
        some = subject.module(torch.tensor([row]), at_BN=torch.tensor([[SHORT - 1, 0, 3]]))
    _near(some[0], _whole(subject.module, row)[[SHORT - 1, 0, 3]], "asked for alone")


@check("language", "A batch is answered as singles are, and a stream gives the same text.", kinds=DECODERS)
def answers_do_not_depend_on_the_batch(subject: Subject) -> None:
    rows = [row[: SHORT - 3 * number] for number, row in enumerate(_prompts(subject, 3))]
    together = generate(subject.module, rows, max_tokens=6)
    for number, row in enumerate(rows):
        (alone,) = generate(subject.module, [row], max_tokens=6)
        if alone != together[number]:
            raise CheckFailed(f"prompt {number} is answered {alone.ids} alone and {together[number].ids} in a batch")
        if "".join(piece.text for piece in stream(subject.module, [row], max_tokens=6)) != alone.text:
            raise CheckFailed(f"the stream of prompt {number} is not its text")


@check("language", "More tokens than the context holds are refused.", kinds=DECODERS)
def context_is_kept(subject: Subject) -> None:
    context = subject.module.context
    if context > 2048:
        raise CheckSkipped(f"a context of {context} tokens takes too long to fill")
    try:
        _whole(subject.module, [1] * (context + 1))
    except UsageError:
        return
    raise CheckFailed(f"{context + 1} tokens were read, the context is {context}")


def token_rows(module: Any, items: Sequence[str]) -> list[list[int]]:
    """Texts as ids; the empty text is the start token. Raises UsageError for a text that the decoder cannot read.

    Of a decoder that was built without a tokenizer: any ids, as many as the text has bytes.
    """
    if module.tokenizer is None:
        return [[byte % module.vocabulary for byte in text.encode()] or [0] for text in items]
    rows = [module.tokenizer.encode(text) for text in items]
    if not all(rows) and module.tokenizer.start_id is None:
        raise UsageError("an empty text, and no start token")
    return [row or [module.tokenizer.start_id] for row in rows]


def next_logits(module: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits after each row, float[B, V]; gradients flow where they are enabled."""
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    tokens_BT, mask_BT = batch_of(rows, device=device)  # padded on the left, so that all rows end together
    last_B1 = torch.full((len(rows), 1), tokens_BT.shape[1] - 1, device=device)
    logits_B1V: torch.Tensor = module(tokens_BT, mask_BT=mask_BT, at_BN=last_B1)
    return logits_B1V[:, 0]


def _tokenizer(subject: Subject) -> Any:
    tokenizer = subject.module.tokenizer
    if tokenizer is None:
        raise CheckSkipped("it was built without a tokenizer, whose file is not on this machine")
    return tokenizer


def _prompts(subject: Subject, count: int) -> list[list[int]]:
    """Random ids, the same every time."""
    generator = torch.Generator().manual_seed(SEED)
    found: list[list[int]] = torch.randint(
        subject.module.vocabulary, (count, min(SHORT, subject.module.context)), generator=generator
    ).tolist()
    return found


def _whole(module: Any, row: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits_TV: torch.Tensor = module(torch.tensor([list(row)]))[0]
    return logits_TV


def _near(value: torch.Tensor, expected: torch.Tensor, when: str) -> None:
    if value.shape != expected.shape:
        raise CheckFailed(f"{when}: logits of shape {list(value.shape)}, expected {list(expected.shape)}")
    allowed = TOLERANCE * max(1e-3, float(expected.abs().max()))
    difference = float((value - expected).abs().max())
    if not difference <= allowed:
        raise CheckFailed(
            f"{when}: logits differ by {difference:.2g}, allowed is {allowed:.2g} ({TOLERANCE} of the largest)"
        )
