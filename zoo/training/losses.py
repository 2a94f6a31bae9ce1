"""What is to become small: of completions after prompts, of pictures among those of their class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from zoo.decoding.reading import batch_of, device_of
from zoo.errors import UsageError


@dataclass(frozen=True, slots=True)
class Completion:
    """Token ids of a prompt and of what is to follow it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def encode_completions(tokenizer: Any, pairs: Sequence[tuple[str, str]], *, longest: int) -> list[Completion]:
    """Texts -> ids, the completion with the token that ends an answer behind it.

    An empty prompt is the start token. Raises UsageError, with the number of the pair, for an empty completion, and for one that makes
    more than `longest` tokens together with its prompt.
    """
    found = []
    for number, (prompt, completion) in enumerate(pairs, start=1):
        before, after = tokenizer.encode(prompt), tokenizer.encode(completion)
        if not after:
            raise UsageError(f"pair {number} has an empty completion: there is nothing to learn from it")
        if not before and tokenizer.start_id is not None:
            before = [tokenizer.start_id]
        if not before:
            raise UsageError(f"pair {number} has an empty prompt, and this model has no start token: give it some text")
        ids = (*after, *tokenizer.end_ids[:1])
        if len(before) + len(ids) > longest:
            raise UsageError(f"pair {number} has {len(before) + len(ids):,} tokens, the most is {longest:,}: shorten it")
        found.append(Completion(tuple(before), ids))
    return found


def completion_loss(decoder: Any) -> Callable[[Sequence[Completion]], torch.Tensor]:
    """The mean negative log-probability of the completions' tokens, in nats; those of prompts are read and not counted."""

    def loss(batch: Sequence[Completion]) -> torch.Tensor:
        rows = [(*one.prompt, *one.completion[:-1]) for one in batch]
        tokens_BT, mask_BT = batch_of(rows, device=device_of(decoder))
        longest = max(len(one.completion) for one in batch)
        asked = [(row, step) for row, one in enumerate(batch) for step in range(longest - len(one.completion), longest)]
        rows_N, steps_N = torch.tensor(asked, device=tokens_BT.device).unbind(1)
        last = torch.arange(tokens_BT.shape[1] - longest, tokens_BT.shape[1], device=tokens_BT.device)
        logits_BNV = decoder(tokens_BT, mask_BT=mask_BT, at_BN=last.expand(len(batch), -1))
        targets_N = torch.tensor([token for one in batch for token in one.completion], device=tokens_BT.device)
        return cross_entropy(logits_BNV[rows_N, steps_N].float(), targets_N)

    return loss


def centroid_loss(
    encoder: Any, *, classes: int, temperature: float = 0.1
) -> Callable[[Sequence[tuple[Any, int]]], torch.Tensor]:
    """Each item is to lie nearest the mean of the others of its class (Snell et al. 2017, arXiv:1703.05175, each left out of its own mean).

    A batch is of (input, class) pairs, inputs as `preprocess` gives them for one item; a class with one item in it is not asked for. No
    layer is added: what was learned is in the vectors, for any few-shot rule.
    """

    def loss(batch: Sequence[tuple[Any, int]]) -> torch.Tensor:
        inputs = torch.cat([one for one, _ in batch]).to(device_of(encoder))
        labels_N = torch.tensor([label for _, label in batch], device=inputs.device)
        pooled_ND = normalize(encoder(inputs).pooled_BD.float(), dim=-1)
        member_NC = one_hot(labels_N, classes).to(pooled_ND)
        sums_CD, counts_C = member_NC.T @ pooled_ND, member_NC.sum(0)
        # One's own vector is taken out of the mean of one's own class.
        others_NCD = sums_CD[None] - member_NC[..., None] * pooled_ND[:, None]
        others_NC = counts_C[None] - member_NC
        scores_NC = (pooled_ND[:, None] * normalize(others_NCD, dim=-1)).sum(-1) / temperature
        scores_NC = scores_NC.masked_fill(others_NC == 0, float("-inf"))
        asked_N = others_NC.gather(1, labels_N[:, None])[:, 0] > 0
        if not bool(asked_N.any()):
            raise UsageError(
                "every class of the batch has one item, so none is near another of its own: take a greater batch_size"
            )
        return cross_entropy(scores_NC[asked_N], labels_N[asked_N])

    return loss
