"""A decoder with senses: it reads text and media in any order, and is asked like any decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from zoo.errors import UsageError
from zoo.models.fusion.item import MOST_ITEMS, Item, Placed
from zoo.models.fusion.media_cache import Kept, MediaCache
from zoo.models.fusion.sense import Sense
from zoo.nn.cache import Cache
from zoo.nn.decoder import Inserted
from zoo.nn.extension import Selection, begin, content_key, extension_of, learns
from zoo.nn.kernels.seam import gradients_flow
from zoo.nn.seen_media import Piece, Place, SeenMedia, Shown, Source
from zoo.nn.stack import BeforeLayer

Media = Sequence[Sequence[Placed]]  # of each row


class Fused(nn.Module):
    """Senses over a decoder (see `zoo.api.Decoder`; it must take `before_layer`, and `inserted` for spliced senses).

    Each modality has its own sense, which adds to what the decoder computes and to nothing that another sense computes: while its
    gates are zero, or where a prompt holds none of its items, every logit is the same to the bit. What was read is passed and
    returned in the cache; nothing is kept on a module. A film is read by the sense for images where there is none for films.
    """

    def __init__(self, decoder: nn.Module, senses: Mapping[str, Sense]) -> None:
        super().__init__()
        markers = [sense.marker for sense in senses.values()]
        twice = next((marker for marker in markers if markers.count(marker) > 1), None)
        if twice is not None:
            raise UsageError(f"two senses have the marker {twice!r}: give each its own")
        self.decoder: Any = decoder
        self.senses = nn.ModuleDict(senses)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; a decoder or an encoder without a parameter to train stays in evaluation: its statistics are its own."""
        super().train(mode)
        senses: Any = self.senses.values()
        for part in (self.decoder, *(sense.encoder for sense in senses)):
            if part is not None and not any(one.requires_grad for one in part.parameters()):
                part.eval()
        return self

    @property
    def tokenizer(self) -> Any:
        return self.decoder.tokenizer

    @property
    def context(self) -> int:
        return int(self.decoder.context)

    @property
    def vocabulary(self) -> int:
        return int(self.decoder.vocabulary)

    @property
    def one_step(self) -> Callable[[torch.Tensor, Cache], torch.Tensor] | None:
        """One token of each row at once, where the decoder has such a step."""
        return self._step if getattr(self.decoder, "one_step", None) is not None else None

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        cache: Cache = self.decoder.new_cache(batch, capacity)
        return cache

    def sense_of(self, modality: str) -> str:
        """The name of the sense that reads items of a modality. Raises UsageError, with those there are."""
        for name in (modality, "image") if modality == "video" else (modality,):
            if name in self.senses:
                return name
        held = ", ".join(self.senses) or "none"
        raise UsageError(
            f"this model has no sense for {modality}: it has {held}; compose it with an encoder for {modality}"
        )

    @torch.inference_mode()
    def latent_count(self, one: Item, media_cache: MediaCache | None = None) -> int:
        """How many tokens an item takes where its sense is spliced."""
        name = self.sense_of(one.modality)
        sense: Any = self.senses[name]
        (found,) = self._kept_of_rows(name, sense, [[Placed(0, 1, one)]], media_cache, None)
        return len(found[one.key])

    def forward(
        self,
        tokens_BT: torch.Tensor,
        *,
        mask_BT: torch.Tensor | None = None,
        cache: Cache | None = None,
        at_BN: torch.Tensor | None = None,
        media: Media | None = None,
        media_cache: MediaCache | None = None,
        inserted: Inserted | None = None,
    ) -> torch.Tensor:
        """int[B, T] and the items of each row -> logits float[B, T, V], as `zoo.api.Decoder.forward`.

        media: for each row its items in the order of their positions, which count the row's real tokens in this call. With a cache
            they are remembered for the calls that follow.
        media_cache: what items became in earlier calls; for calls without gradients.
        inserted: as `zoo.nn.decoder.Decoder.forward` takes it.
        Raises UsageError for an item outside its row, items out of order, more than `MOST_ITEMS` in a row, and a modality without
        a sense.
        """
        placed = _check(tokens_BT, mask_BT, media)
        cache = begin(self, len(tokens_BT), cache)
        before = 0 if cache is None else cache.length
        if torch.is_grad_enabled() and learns(self):
            self._refuse_gradients(cache, media_cache)
        columns = None if mask_BT is None or not any(placed) else [row.nonzero().flatten().tolist() for row in mask_BT]
        shown = dict(cache.media) if cache is not None else {}
        rows_of: dict[str, list[list[Placed]]] = {}
        for number, row in enumerate(placed):
            for one in row:
                name = self.sense_of(one.item.modality)
                rows_of.setdefault(name, [[] for _ in placed])[number].append(one)
        spliced: list[Inserted] = [] if inserted is None else [inserted]
        for name, rows in rows_of.items():
            sense: Any = self.senses[name]
            kept = self._kept_of_rows(name, sense, rows, media_cache, None if cache is None else cache.selection)
            if sense.spliced:
                spliced += _splice(rows, columns, tokens_BT.shape[1], kept)
                continue
            places = [
                [
                    Place(before + _column(columns, number, one), one.tokens, _piece(kept[number][one.item.key]))
                    for one in row
                    if one.position >= 0 or not before  # else the cache holds it, and only its marker goes on here
                ]
                for number, row in enumerate(rows)
            ]
            earlier = shown.get(name) or Shown(sense.adjacent, ((),) * len(placed))
            shown[name] = earlier.added(places)
        arguments: dict[str, Any] = {"mask_BT": mask_BT, "cache": cache, "at_BN": at_BN}
        if spliced:
            arguments["inserted"] = tuple(map(torch.cat, zip(*spliced, strict=True)))
        before_layer = self._before_layer(shown, tokens_BT, before)
        if before_layer is not None:
            arguments["before_layer"] = before_layer
        logits: torch.Tensor = self.decoder(tokens_BT, **arguments)
        if cache is not None:
            cache.media = shown
        return logits

    def _refuse_gradients(self, cache: Cache | None, media_cache: MediaCache | None) -> None:
        """Raise UsageError where a gradient would be lost without a word."""
        if media_cache is not None:
            raise UsageError(
                "a media cache keeps numbers through which no gradient flows: use torch.inference_mode() with it"
            )
        if cache is not None and cache.grown is None:
            raise UsageError("a cache is filled in place, which no gradient survives: use torch.inference_mode() with it")
        if not gradients_flow(self.decoder):
            raise UsageError(
                "no gradient flows through this decoder, which runs by a kernel: train the composition as it is (kernel float32), and apply "
                "the kernel when it is asked; or use torch.inference_mode()"
            )

    def _step(self, tokens_B: torch.Tensor, cache: Cache) -> torch.Tensor:
        before_layer = self._before_layer(cache.media, tokens_B[:, None], cache.length)
        extra = {} if before_layer is None else {"before_layer": before_layer}
        logits_BV: torch.Tensor = self.decoder.one_step(tokens_B, cache, **extra)
        return logits_BV

    def _before_layer(self, shown: Mapping[str, Shown], tokens_BT: torch.Tensor, before: int) -> BeforeLayer | None:
        """What the senses do before each layer; None where none of them has anything to do."""
        batch, count = tokens_BT.shape
        looks = []
        for name, module in self.senses.items():
            sense: Any = module
            feeds_all = any(gated.feeds_all for gated in sense.gated.values())
            if not sense.spliced and (name in shown or feeds_all):
                media = shown.get(name) or Shown(sense.adjacent, ((),) * batch)
                seen = SeenMedia(media, batch, count, before=before, device=tokens_BT.device)
                if feeds_all or not seen.nothing:
                    looks.append((sense.gated, seen))
        if not looks:
            return None

        def before_layer(layer: int, tokens_BTW: torch.Tensor) -> torch.Tensor:
            for gated, seen in looks:
                if str(layer) in gated:
                    tokens_BTW = gated[str(layer)](tokens_BTW, seen, layer)
            return tokens_BTW

        return before_layer

    def _kept_of_rows(
        self,
        name: str,
        sense: Sense,
        rows: Sequence[Sequence[Placed]],
        media_cache: MediaCache | None,
        selection: Selection | None,
    ) -> list[dict[str, Any]]:
        """Of each row what `_kept` gives. Rows whose adapters do the same to the sense share their items, and no others do."""
        extension = extension_of(self)
        other = content_key(sense, but=extension)  # of an encoder that was adapted by itself
        if extension is None:
            return [self._kept(name, sense, [one.item for row in rows for one in row], media_cache, other)] * len(rows)
        chosen: Selection = selection or extension.chosen()
        chosen = chosen if chosen.batch in (None, len(rows)) else chosen.only(0)
        tags = extension.keys_on(sense, chosen, len(rows))
        found: dict[str, dict[str, Any]] = {}
        for tag in dict.fromkeys(tags):
            numbers = [number for number, own in enumerate(tags) if own == tag]
            items = [one.item for number in numbers for one in rows[number]]
            with extension.using(chosen.only(numbers[0])):
                found[tag] = self._kept(name, sense, items, media_cache, other + tag)
        return [found[tag] for tag in tags]

    def _kept(
        self, name: str, sense: Sense, items: Sequence[Item], media_cache: MediaCache | None, tag: str = ""
    ) -> dict[str, Any]:
        """By key, each item as (source, place there) or as latents; every one is computed once, those that are kept not at all."""
        if media_cache is not None:
            media_cache.open_for(self, name, sense)
        found: dict[str, Any] = {}
        missing: dict[str, Item] = {}
        for one in items:
            if one.key in found or one.key in missing:
                continue
            known = media_cache.find(name, tag + one.key) if media_cache is not None else None
            if known is None:
                missing[one.key] = one
            else:
                found[one.key] = known.latents_LW if sense.spliced else (known.source, 0)
        if missing:
            made = sense.latents(list(missing.values())) if sense.spliced else sense.source(list(missing.values()))
            for index, key in enumerate(missing):
                if isinstance(made, Source):
                    found[key] = (made, index)
                    if media_cache is not None:  # alone, so that what is kept holds no other item of its batch
                        found[key] = (made.item(index), 0)
                    kept = Kept(source=found[key][0]) if media_cache is not None else None
                else:
                    latents_NLW, mask_NL = made
                    found[key] = latents_NLW[index] if mask_NL is None else latents_NLW[index][mask_NL[index]]
                    kept = Kept(latents_LW=found[key].clone()) if media_cache is not None else None
                if media_cache is not None and kept is not None:
                    media_cache.keep(name, tag + key, kept)
        return found


def _check(tokens_BT: torch.Tensor, mask_BT: torch.Tensor | None, media: Media | None) -> list[list[Placed]]:
    """The items of each row."""
    batch, count = tokens_BT.shape
    if media is None:
        return [[] for _ in range(batch)]
    if len(media) != batch:
        raise UsageError(f"media are given for each row: the tokens have {batch} rows, got media for {len(media)}")
    sizes = [count] * batch if mask_BT is None else mask_BT.sum(1).tolist()
    for number, (row, size) in enumerate(zip(media, sizes, strict=True)):
        if len(row) > MOST_ITEMS:
            raise UsageError(f"a prompt holds at most {MOST_ITEMS} media items, row {number} has {len(row):,}")
        end = None
        for one in row:
            if one.tokens < 1 or one.position + one.tokens <= 0 or one.position >= size:
                raise UsageError(
                    f"an item of {one.item.modality} at token {one.position} with {one.tokens} tokens is outside row {number}, which has {size}"
                )
            if end is not None and one.position < end:
                raise UsageError(f"media stand in the order of their tokens and apart: row {number} has one at {one.position}, "
                                 f"and the one before ends at {end}")  # fmt: skip
            end = one.position + one.tokens
    return [list(row) for row in media]


def _column(columns: list[list[int]] | None, row: int, placed: Placed) -> int:
    first = max(placed.position, 0)
    return first if columns is None else columns[row][first]


def _piece(found: Any) -> Piece:
    piece: Piece = found
    return piece


def _splice(
    rows: Sequence[Sequence[Placed]],
    columns: list[list[int]] | None,
    count: int,
    latents: Sequence[Mapping[str, torch.Tensor]],
) -> list[Inserted]:
    """Where the latents of items stand among the tokens of this call."""
    found: list[Inserted] = []
    for number, row in enumerate(rows):
        real = columns[number] if columns is not None else list(range(count))
        for one in row:
            latents_LW = latents[number][one.item.key]
            if len(latents_LW) != one.tokens:
                raise UsageError(
                    f"an item of {one.item.modality} becomes {len(latents_LW)} latents here, and {one.tokens} tokens are left for it"
                )
            first, last = max(one.position, 0), min(one.position + one.tokens, len(real))
            at = torch.tensor(real[first:last], device=latents_LW.device)
            found.append((torch.full_like(at, number), at, latents_LW[first - one.position : last - one.position]))
    return found
