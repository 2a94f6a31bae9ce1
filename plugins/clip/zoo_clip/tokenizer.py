"""Texts -> token ids, by open_clip's own tokenizers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from zoo.api import UsageError, WeightsMissingError, offline
from zoo_clip.hub import need_hub_file
from zoo_clip.library import open_clip, process_as_found

CLIP_VOCABULARY = 49408
# What open_clip would read as the end of a text wherever somebody writes it: all that follows would count for nothing. With the blank
# its words are those that they are without a control token of that name.
CONTROL = re.compile(r"<(?=(?:start|end)_of_text>)", re.IGNORECASE)
# open_clip joins the letters of a word in time that grows with its square, and reads all of a text to keep 77 tokens of it: 100 kB
# without a blank took two minutes.
LONGEST_TOKEN = 24  # characters, in CLIP's vocabulary
LONGEST_TEXT = 20_000  # characters that are cleaned; an entity of HTML has up to 37 and becomes one


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What a text tower reads its texts with. It is loaded at the first text: a hub's files are not asked for before.

    arch: the open_clip name whose tokenizer it is; None for CLIP's byte-pair encoding, which comes with open_clip.
    repository: where on the hub the files of another tokenizer lie; None when it needs none.
    """

    arch: str | None
    repository: str | None
    context: int

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> int[B, context], cut and padded as the tower was trained.

        Raises UsageError for anything that is not a str, and WeightsMissingError when the tokenizer's files cannot be had.
        (What is no valid Unicode in a str is mended, as open_clip does.)
        """
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UsageError(f"a text must be a str, item {number} is {type(text).__name__}")
        if not texts:
            return torch.zeros(0, self.context, dtype=torch.long)
        return _load(self.arch, self.repository, self.context)(list(texts))


def choose_tokenizer(arch: str | None, text: dict[str, Any], choice: str | None) -> Tokenizer:
    """The architecture's own tokenizer, or with `choice="clip"` CLIP's byte-pair encoding, which needs no hub.

    Raises UsageError for another choice, and for a vocabulary that is too small for CLIP's.
    """
    if choice not in (None, "clip"):
        raise UsageError(f'tokenizer must be "clip" or left out, got {choice!r}')
    repository = text.get("hf_tokenizer_name") or None
    own = arch is not None and choice is None
    vocabulary = text.get("vocab_size", CLIP_VOCABULARY)
    if not (own and repository) and not text.get("hf_model_name") and vocabulary < CLIP_VOCABULARY:
        raise UsageError(
            f"CLIP's tokenizer has {CLIP_VOCABULARY} entries, the text tower has a vocab_size of {vocabulary}: give "
            f"text={{'vocab_size': {CLIP_VOCABULARY}}} as well"
        )
    return Tokenizer(arch if own else None, repository if own else None, text.get("context_length", 77))


def _cleaned(text: str, clean: Callable[[str], str], context: int) -> str:
    """What open_clip reads a text as, up to where its tokens are cut off at the latest; control tokens as the text that they are."""
    if len(text) > LONGEST_TEXT:
        text = " ".join(text.split())[:LONGEST_TEXT]
    cleaned = clean(text)[: context * (LONGEST_TOKEN + 8)]  # a blank after each, and room for what the last word is made of
    return CONTROL.sub("< ", cleaned)


@cache
def _load(arch: str | None, repository: str | None, context: int) -> Callable[[list[str]], torch.Tensor]:
    with process_as_found():
        if repository is None:
            plain: Any = open_clip.get_tokenizer(arch or "", context_length=context)
            plain.clean_fn = partial(_cleaned, clean=plain.clean_fn, context=context)
            reads: Callable[[list[str]], torch.Tensor] = plain
            return reads
        need_hub_file(repository, "tokenizer_config.json", wanted_by=f"the tokenizer of {arch}")
        try:
            from_hub: Callable[[list[str]], torch.Tensor] = open_clip.get_tokenizer(
                arch, context_length=context, local_files_only=offline()
            )
        except (OSError, ValueError, ImportError) as error:
            raise WeightsMissingError(
                f"the tokenizer of {arch} could not be made from the Hugging Face repository {repository} "
                f"({' '.join(str(error).split())[:200]}). Connect once and run: "
                f"""python -c "import open_clip; open_clip.get_tokenizer('{arch}')" """.rstrip()
            ) from error
    from_hub.tokenizer.split_special_tokens = True  # type: ignore[attr-defined]  # of transformers: "</s>" in a text is these characters
    return from_hub
