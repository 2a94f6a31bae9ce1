"""Which label fits a text best: a decoder ranks the labels as endings of a prompt, after examples where there are some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from zoo.data.arguments import file_texts
from zoo.data.lines import MAX_TEXT_BYTES, TABLES, short_enough, table_rows
from zoo.errors import MediaError, UsageError
from zoo.models.build import Built, ModelSpec
from zoo.models.composition import Composition
from zoo.models.provenance import provenance_of
from zoo.tasks.classify import Answer, Classification, shown_labels
from zoo.tasks.classify_request import check_labels
from zoo.tasks.generation import Choice, joined, ranked, score
from zoo.tasks.language_model import LanguageModel, open_language_model

TEMPLATE = "Text: {text}\nLabel:"
BETWEEN = "\n\n"
NOTHING = "N/A"


def classify_texts(
    texts: str | Path | Sequence[str | Path],
    labels: Sequence[str] | None = None,
    *,
    shots: str | Path | Sequence[tuple[str, str]] | None = None,
    template: str = TEMPLATE,
    normalise: str = "sum",
    top: int | None = None,
    model: str | Path | ModelSpec | Built | Composition | LanguageModel | None = None,
) -> Classification:
    """Classify texts by the log-probability of each label after a prompt.

    texts: strings are texts, and paths are text files. labels: two or more different names; those of the shots when None.
    shots: (text, label) pairs, or a table of them (see `read_shots`), put before each text in the order given.
    template: the prompt of one text, with `{text}`; the label follows after a blank.
    normalise: as for `zoo.score`; but "calibrated" compares with the same prompt for a text that says nothing, examples and
        all, so that no label wins by its place among them (Zhao et al. 2021, arXiv:2102.09690).
    top: how many labels to report; all when None, up to 20. model: as for `zoo.score`.
    A text that is empty, or too long for the model, has an error in place of an answer. Raises UsageError for arguments that make no sense
    and examples that the model's context does not hold, MediaError for a file of shots that cannot be read.
    """
    items = _texts(texts)
    if top is not None and top < 1:
        raise UsageError(f"top is at least 1, got {top}")
    if template.count("{text}") != 1:
        raise UsageError(f"a template has one {{text}} where the text goes, got {template!r}")
    examples, names = _examples(shots, labels)
    language = model if isinstance(model, LanguageModel) else open_language_model(model)
    asked = [(template.replace("{text}", text), label) for text, label in examples]
    before = "".join(f"{prompt}{joined(prompt, label)}{BETWEEN}" for prompt, label in asked)
    _check_room(language, before, template, examples)
    prompts = [before + template.replace("{text}", text) for text in items]
    base = None
    if normalise == "calibrated":
        base = score(before + template.replace("{text}", NOTHING), names, model=language).results[0]
    choices = [
        _choice(language, prompt, names, normalise, base) if text.strip() else "the text is empty"
        for text, prompt in zip(items, prompts, strict=True)
    ]
    limit = shown_labels(top, len(names))
    results = []
    for text, choice in zip(items, choices, strict=True):
        if isinstance(choice, str):
            results.append(Answer(text, None, None, {}, error=f"{' '.join(text[:200].split())[:40]!r}: {choice}"))
            continue
        best = dict(list(choice.scores.items())[:limit])
        results.append(Answer(text, choice.choice, choice.scores[choice.choice], best))
    return Classification(
        provenance=provenance_of(language.built, kernel=language.kernel),
        method=f"{len(examples)} examples in the prompt" if examples else "zero-shot",
        results=tuple(results),
    )


def _texts(texts: str | Path | Sequence[str | Path]) -> list[str]:
    items = [texts] if isinstance(texts, (str, Path)) else list(texts)
    wrong = next((item for item in items if not isinstance(item, (str, Path))), None)
    if wrong is not None:
        raise UsageError(f"a text is a string, and a text file a path, got {wrong!r:.80}")
    read = (file_texts(item) if isinstance(item, Path) else [item] for item in items)
    return [text for texts_of_one in read for text in texts_of_one]


def _examples(
    shots: str | Path | Sequence[tuple[str, str]] | None, labels: Sequence[str] | None
) -> tuple[list[tuple[str, str]], list[str]]:
    """The examples, and the labels: those that are named, or those of the examples. Raises UsageError where they do not fit."""
    examples = read_shots(Path(shots)) if isinstance(shots, (str, Path)) else list(shots or ())
    for example in examples:
        if len(example) != 2 or not all(isinstance(part, str) for part in example):
            raise UsageError(f"an example is a pair of two strings, text and label, got {example!r:.80}")
    names = check_labels(labels, capitals_count=True) if labels is not None else sorted({label for _, label in examples})
    if len(names) < 2:
        raise UsageError("texts need labels: name at least two, or give examples of two (--labels a,b or --shots FILE)")
    unknown = sorted({label for _, label in examples} - set(names))
    if unknown:
        raise UsageError(f"examples have labels that are not among {', '.join(names)}: {', '.join(unknown)}")
    return examples, names


def _choice(
    language: LanguageModel, prompt: str, names: Sequence[str], normalise: str, base: Choice | None
) -> Choice | str:
    """The choice for a prompt, or why there is none. base: log-probabilities after a prompt whose text says nothing."""
    if len(prompt) > MAX_TEXT_BYTES:
        return f"the text, with what stands around it, is longer than the limit of {MAX_TEXT_BYTES:,} characters"
    tokens, context = len(language.tokenizer.encode(prompt)), language.decoder.context
    longest = max(len(language.tokenizer.encode(joined(prompt, name))) for name in names)
    if tokens + longest > context:
        return f"the text, with what stands around it, has {tokens:,} tokens, and the model reads at most {context:,} with the label"
    one: Choice = score(prompt, names, normalise="sum" if base is not None else normalise, model=language).results[0]
    if base is None:
        return one
    return ranked(one.prompt, {name: value - base.logprobs[name] for name, value in one.logprobs.items()})


def _check_room(language: LanguageModel, before: str, template: str, examples: Sequence[tuple[str, str]]) -> None:
    """Raise UsageError for examples that leave no room for a text, with how many there is room for."""
    if not examples:
        return
    size = len(language.tokenizer.encode(before + template.replace("{text}", "")))
    context = language.decoder.context
    if size >= context:
        raise UsageError(
            f"the {len(examples)} examples have {size:,} tokens, and the model reads at most {context:,} with the text: give some "
            f"{max(1, len(examples) * context // (2 * size))} of them"
        )


def read_shots(path: Path) -> list[tuple[str, str]]:
    """(text, label) pairs of a table: `.jsonl`, `.csv` or `.tsv`, with the fields `text` and `label`.

    Raises UsageError for another ending or no such file, MediaError with the line for what cannot be read.
    """
    if path.suffix.lower() not in TABLES:
        raise UsageError(f"--shots {path}: examples of texts are a .jsonl or .csv file with the fields text and label")
    if not path.is_file():
        raise UsageError(f"--shots {path}: there is no such file")
    pairs = []
    for number, row in table_rows(path):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not isinstance(label, str) or not label.strip():
            raise MediaError(
                f"{path}:{number}: an example has the fields text and label, both texts, got {json.dumps(row, ensure_ascii=False)[:80]}"
            )
        pairs.append((short_enough(text, f"{path}:{number}: text"), label.strip()))
    if not pairs:
        raise MediaError(f"{path} holds no examples")
    return pairs
