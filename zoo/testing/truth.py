"""The card against the model: what it declares must be what is built, and what it names must be what is delivered."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from zoo.errors import WeightsMissingError
from zoo.models.contracts import Bridge, Decoder, DualEncoder, Encoder, Transcriber
from zoo.models.encoded import Encoded
from zoo.registry.modality import MODALITIES
from zoo.testing.check import CheckFailed, CheckSkipped, Subject, check
from zoo.testing.samples import ordinary

ENCODERS = ("encoder", "dual_encoder")
MODELS = (*ENCODERS, "decoder", "bridge")  # what is built from a card, has parameters and reads items of its modalities
CARDS = (*MODELS, "transcriber")  # what is built from a card


@check("manifest", "The card names licence, parameters and the width of what comes out.", kinds=CARDS, needs_model=False)
def card_is_complete(subject: Subject) -> None:
    card = subject.found.card
    missing = [] if card.licence or (subject.found.weights and subject.found.weights.licence) else ["licence"]
    if subject.listed and card.parameters is None:
        missing.append("parameters")
    if card.kind == "encoder" and subject.listed and not {"count", "width"} <= set(card.tokens):
        missing.append("tokens = { count = ..., width = ... } (count 0: it depends on the input)")
    if card.kind == "bridge" and subject.listed and not isinstance(card.variant.get("input_width"), int):
        missing.append("variant = { input_width = ... } (any: zoo compose gives that of the encoder)")
    if card.kind == "dual_encoder" and card.embedding_width is None:
        missing.append("embedding_width")
    if missing and not subject.listed:
        raise CheckSkipped(f"a member of a family, whose card does not say: {', '.join(missing)}")
    if missing:
        raise CheckFailed(f"the card does not say: {', '.join(missing)}")


@check("manifest", "What is built has the methods of its kind.", kinds=CARDS, needs_model=False)
def contract_is_kept(subject: Subject) -> None:
    kinds = {
        "encoder": Encoder,
        "dual_encoder": DualEncoder,
        "decoder": Decoder,
        "bridge": Bridge,
        "transcriber": Transcriber,
    }
    kind: Any = kinds[subject.found.card.kind]
    if not isinstance(subject.module, kind):
        wanted = [name for name in members(kind) if not hasattr(subject.module, name)]
        raise CheckFailed(f"{type(subject.module).__name__} lacks {', '.join(wanted)} (zoo/models/contracts.py)")
    if subject.module.training:
        raise CheckFailed("it is in training mode after building")


def members(contract: type) -> list[str]:
    """What a contract asks for, in the order in which it says so. The library tells only from Python 3.13 on."""
    names = [name for part in contract.__mro__ if getattr(part, "_is_protocol", False)
             for name in (*inspect.get_annotations(part), *vars(part)) if not name.startswith("_")]  # fmt: skip
    return list(dict.fromkeys(names))


@check("manifest", "It has as many parameters as the card says.", kinds=CARDS)
def parameters_as_declared(subject: Subject) -> None:
    declared = subject.found.card.parameters
    if declared is None:
        raise CheckSkipped("the card declares no number")
    actual = sum(parameter.numel() for parameter in subject.module.parameters())
    if actual != declared:
        raise CheckFailed(f"the card says parameters = {declared}, the model has {actual}")


@check("manifest", "Its outputs have the shapes that the card says.", kinds=MODELS)
def shapes_as_declared(subject: Subject) -> None:
    card = subject.found.card
    if card.kind == "decoder":
        with torch.inference_mode():
            logits = subject.module(torch.tensor([[0, 1, 2]]))
        if list(logits.shape) != [1, 3, subject.module.vocabulary]:
            raise CheckFailed(f"logits of 3 tokens are {list(logits.shape)}, the vocabulary is {subject.module.vocabulary}")
        return
    if card.kind == "bridge":
        raise CheckSkipped("its latents are looked at by latents-are-as-promised")
    for modality in card.modalities:
        items = ordinary(modality)
        if card.kind == "dual_encoder":
            with torch.inference_mode():
                embeddings = subject.module.embed(modality, items)
            wanted = [len(items), card.embedding_width or embeddings.shape[-1]]
            if list(embeddings.shape) != wanted:
                raise CheckFailed(f"embed({modality!r}) gives {list(embeddings.shape)}, expected {wanted}")
            continue
        encoded = encode(subject, items)
        count, width = card.tokens.get("count"), card.tokens.get("width")
        shape = list(encoded.tokens_BTD.shape)
        if shape != [len(items), count or shape[1], width or shape[2]]:
            raise CheckFailed(
                f"tokens are {shape}, the card says count = {count} and width = {width} of {len(items)} items"
            )
        pooled = list(encoded.pooled_BD.shape)
        if pooled != [len(items), card.embedding_width or pooled[1]]:
            raise CheckFailed(
                f"pooled vectors are {pooled}, the card says embedding_width = {card.embedding_width} of {len(items)} items"
            )
        classes = subject.found.classes
        if classes:
            with torch.inference_mode():
                logits = subject.module.logits(subject.module.preprocess(items))
            if list(logits.shape) != [len(items), classes] or len(subject.module.labels) != classes:
                raise CheckFailed(
                    f"logits are {list(logits.shape)} with {len(subject.module.labels)} labels, the card says {classes}"
                )


@check("manifest", "A modality that the card does not name is refused.", kinds=("dual_encoder",))
def other_modalities_are_refused(subject: Subject) -> None:
    other = next(modality for modality in MODALITIES if modality not in subject.found.card.modalities)
    try:
        subject.module.preprocess(other, [])
    except Exception as error:  # noqa: BLE001 - any refusal that names it will do
        if other in str(error):
            return
        raise CheckFailed(f"preprocess({other!r}, ...) raised {type(error).__name__} without naming {other!r}") from None
    raise CheckFailed(f"preprocess({other!r}, ...) was accepted")


@check("weights", "Each weight file has a full sha256, a size and a licence.", kinds=CARDS, needs_model=False)
def weights_are_pinned(subject: Subject) -> None:
    row = subject.found.weights
    if row is None:
        raise CheckSkipped("the card has no weights of its own")
    missing = [] if row.licence or subject.found.card.licence else ["a licence"]
    for file in row.files:
        missing += [f"{what} of the {file.role} file" for what, value in (("sha256", file.sha256), ("bytes", file.size_bytes)) if value is None]  # fmt: skip
    if missing and not subject.listed:
        raise CheckSkipped(f"a member of a family, whose publisher does not give: {', '.join(missing)}")
    if missing:
        raise CheckFailed(f"weights {row.tag!r} do not say: {', '.join(missing)}")


@check("weights", "The weights are the bytes the card names, fit exactly, and are finite.", kinds=CARDS)
def weights_load(subject: Subject) -> None:
    if subject.found.weights is None:
        raise CheckSkipped("the card has no weights of its own")
    try:
        module = subject.open(weights="card").module
    except WeightsMissingError:
        raise CheckSkipped(f"they are not on this machine; bring them with: zoo fetch {subject.found.name}") from None
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckFailed(f"{name} holds NaN or infinity")


def encode(subject: Subject, items: list[Any]) -> Encoded:
    """Raw items through an encoder. Raises CheckFailed unless it returns an Encoded of floating-point tokens."""
    with torch.inference_mode():
        encoded = subject.module(subject.module.preprocess(items))
    if not isinstance(encoded, Encoded):
        raise CheckFailed(f"forward must return zoo.Encoded, got {type(encoded).__name__}")
    if not encoded.tokens_BTD.is_floating_point() or len(encoded.tokens_BTD) != len(items):
        raise CheckFailed(f"{len(items)} items gave tokens {encoded.tokens_BTD.dtype}{list(encoded.tokens_BTD.shape)}")
    return encoded
