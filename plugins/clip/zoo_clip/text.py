"""Text towers of open_clip: its own transformer, and any Hugging Face encoder.

`pooled` and `embedding` are as for images. Where attention is causal, what stands after the end token changes nothing before
it, so that only as many tokens are computed as the longest text of a batch has: that is exact, and for a list of labels an
eighth of the work. Where it is not (SigLIP, CLIPA, MobileCLIP), the padding took part in training, without a mask, and is part
of the text: all of the context is computed, and every token is real.
"""

from dataclasses import dataclass
from typing import Any

import torch

from zoo.api import UsageError
from zoo_clip.blocks import last_block_row
from zoo_clip.library import HFTextEncoder, TextTransformer


@dataclass(frozen=True, slots=True)
class _Start:
    """Input of the first block, the additive mask, the row to read from the last block, and which tokens are real."""

    tokens_BTD: torch.Tensor
    mask: torch.Tensor | None
    rows_B: torch.Tensor
    real_BT: torch.Tensor


def text_embedding(tower: Any, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int[B, T] -> pooled float[B, D] and embedding float[B, E]."""
    if isinstance(tower, HFTextEncoder):
        embedding_BE = tower(_shortened(tower, ids_BT))[0]
        return embedding_BE, embedding_BE
    start = _start(tower, ids_BT)
    pooled_BD = tower.ln_final(last_block_row(tower.transformer, start.tokens_BTD, start.rows_B, start.mask))
    return pooled_BD, _project(tower, pooled_BD)


def text_tokens(tower: Any, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids int[B, T] -> tokens float[B, t, D] after the tower's last norm, which of them are real bool[B, t], and
    embedding float[B, E]; t is the length of the longest text where attention is causal, else T.
    """
    if isinstance(tower, HFTextEncoder):
        ids_BT = _shortened(tower, ids_BT)
        embedding_BE, tokens_BTD = tower(ids_BT)
        real_BT = ids_BT != tower.config.pad_token_id
        return tokens_BTD, real_BT[:, -tokens_BTD.shape[1] :], embedding_BE
    start = _start(tower, ids_BT)
    states_BTD = tower.ln_final(tower.transformer(start.tokens_BTD, attn_mask=start.mask))
    batch = torch.arange(len(states_BTD), device=states_BTD.device)
    embedding_BE = _project(tower, states_BTD[batch, start.rows_B])
    return states_BTD[:, : start.real_BT.shape[1]], start.real_BT, embedding_BE


def check_ids(ids_BT: torch.Tensor, context: int) -> None:
    """Raise UsageError unless these are int[B, T] with 1 to `context` tokens."""
    integer = not (ids_BT.is_floating_point() or ids_BT.is_complex() or ids_BT.dtype == torch.bool)
    if ids_BT.ndim != 2 or not 1 <= ids_BT.shape[1] <= context or not integer:
        raise UsageError(
            f"texts must be token ids int[B, {context}] as preprocess returns them, got {ids_BT.dtype}{list(ids_BT.shape)}"
        )


def _start(tower: Any, ids_BT: torch.Tensor) -> _Start:
    if not isinstance(tower, TextTransformer):
        raise UsageError(f"expected a text tower of open_clip or a Hugging Face encoder, got {type(tower).__name__}")
    ids_BT = ids_BT.to(tower.positional_embedding.device)
    if tower.cls_emb is not None:
        return _coca_start(tower, ids_BT)
    ends_B = _ends(tower, ids_BT)
    causal = tower.attn_mask is not None
    if causal and tower.pool_type in ("argmax", "eos") and len(ids_BT):
        ids_BT = ids_BT[:, : int(ends_B.max()) + 1]
    length = ids_BT.shape[1]
    tokens_BTD, mask = tower._embeds(ids_BT)  # noqa: SLF001 - word and position embeddings, and the mask
    places_T = torch.arange(length, device=ids_BT.device)
    real_BT = places_T <= ends_B[:, None] if causal else torch.ones_like(ids_BT, dtype=torch.bool)
    return _Start(tokens_BTD, None if mask is None else mask[..., :length, :length], ends_B, real_BT)


def _coca_start(tower: Any, ids_BT: torch.Tensor) -> _Start:
    """CoCa: a class token after the padding reads the text, through a mask of the padding that is one place off.

    That is how the published weights were trained, so the first padding token is seen and the class token does not see
    itself. Only tokens that someone sees are kept, and the class token with the position it had.
    """
    tokens_BTD, mask = tower._embeds(ids_BT)  # noqa: SLF001 - as above
    places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    lengths_B = torch.where(ids_BT != tower.pad_id, places_T + 1, 0).amax(dim=1)
    kept = min(int(lengths_B.max()) + 1, ids_BT.shape[1]) if len(ids_BT) else 1
    keep_T = torch.cat([places_T[:kept], places_T[-1:] + 1])
    rows_B = torch.full_like(lengths_B, kept)
    return _Start(tokens_BTD[:, keep_T], mask[:, keep_T][:, :, keep_T], rows_B, places_T[:kept] < lengths_B[:, None])


def _ends(tower: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """int[B], the place whose feature is read."""
    if tower.pool_type == "argmax":  # the end token has the highest number
        return ids_BT.argmax(dim=-1)
    if tower.pool_type == "eos":
        ends_BT: torch.Tensor = ids_BT == tower.eos_id
        return ends_BT.int().argmax(dim=-1)
    places = {"first": 0, "last": ids_BT.shape[1] - 1}
    if tower.pool_type not in places:
        raise UsageError(f"a text tower pools with argmax, eos, first or last, got pool_type={tower.pool_type!r}")
    return ids_BT.new_full((len(ids_BT),), places[tower.pool_type], dtype=torch.long)


def _project(tower: Any, pooled_BD: torch.Tensor) -> torch.Tensor:
    projection = tower.text_projection
    if projection is None:
        return pooled_BD
    embedding_BE: torch.Tensor = (
        projection(pooled_BD) if isinstance(projection, torch.nn.Linear) else pooled_BD @ projection
    )
    return embedding_BE


def _shortened(tower: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Ids up to the last one that is no padding: a Hugging Face encoder masks the padding itself."""
    ids_BT = ids_BT.to(next(tower.parameters()).device)
    used_T = (ids_BT != tower.config.pad_token_id).any(dim=0)
    return ids_BT[:, : int(used_T.nonzero().max()) + 1] if used_T.any() else ids_BT
