"""MiniLM-shaped sentence encoders: texts -> one feature per word piece and their mean.

A BERT encoder (Devlin et al. 2018, arXiv:1810.04805) distilled to few, narrow layers (MiniLM: Wang et al. 2020,
arXiv:2002.10957) and trained for sentence similarity with mean pooling (Reimers and Gurevych 2019, arXiv:1908.10084).
The reference implementation is `BertModel` of the library transformers; the tests hold this one to it, forward and
backward.

Shapes follow `zoo.registry.modality`, with two more letters: N is the number of real tokens of a whole batch, K the width of one
attention head. All of the model but its attention works on the N real tokens, so padding costs little; in return sizes
inside the model depend on the data.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import BertProcessing
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from zoo.api import Encoded, UsageError
from zoo.nn import check_expressions

NORM_EPSILON = 1e-12
BYTE_ENTRIES = 258  # 256 bytes, a start and an end
TOKEN_TYPES = 2  # BERT tells the two sentences of a pair apart; a lone sentence is of type 0

_EMBEDDING_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "norm",
}
_BLOCK_NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "widen",
    "output.dense": "narrow",
    "output.LayerNorm": "narrow_norm",
}
_DROPPED_KEYS = {
    "embeddings.position_ids",  # the numbers 0, 1, 2, ...: not trained
    "pooler.dense.weight",  # BERT's pooler reads the first token alone; sentence vectors are means and never meet it
    "pooler.dense.bias",
}


def sentence_encoder(
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    positions: int,
    max_tokens: int,
    tokenizer_path: Path | None = None,
) -> nn.Module:
    """Build a sentence encoder with random weights.

    width: D. hidden: width inside the feed-forward. vocabulary: number of word pieces. positions: the longest input, in
        tokens, that `forward` takes.
    max_tokens: where `preprocess` cuts a text, the start and end tokens included; at most `positions`.
    tokenizer_path: a `tokenizer.json` of the library tokenizers. None: a token for each byte of a text, which suits random
        weights alone, and needs a vocabulary of at least 258.
    Raises UsageError for numbers that contradict each other and for a tokenizer that does not fit them.
    """
    if width % heads:
        raise UsageError(f"width must be a multiple of heads, got width={width} and heads={heads}")
    if max_tokens > positions:
        raise UsageError(f"max_tokens must be at most positions={positions}, got {max_tokens}")
    tokenizer: Tokenizer | None
    if tokenizer_path is not None:
        tokenizer = open_tokenizer(tokenizer_path, vocabulary, max_tokens)
    else:
        tokenizer = byte_tokenizer(max_tokens) if vocabulary >= BYTE_ENTRIES else None
    return SentenceEncoder(layers, width, heads, hidden, vocabulary, positions, tokenizer)


def open_tokenizer(path: Path, vocabulary: int, max_tokens: int) -> Tokenizer:
    """Read a `tokenizer.json` and have it cut at `max_tokens` and never pad, whatever the file itself says.

    Raises UsageError for a file that cannot be read or brings an expression of its own, for more than `vocabulary` entries,
    and when `max_tokens` leaves no room for text.
    """
    check_expressions(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"tokenizer_path must be a readable tokenizer.json, got {path} ({error})") from error
    entries = tokenizer.get_vocab_size()
    if entries > vocabulary:
        raise UsageError(f"{path} has {entries} entries, the model has vocabulary={vocabulary}: it is another model's")
    added = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_tokens <= added:
        raise UsageError(f"max_tokens must exceed the {added} that {path} adds to each text, got {max_tokens}")
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[SEP]" in a text is these characters, and ends nothing
    return tokenizer


def byte_tokenizer(max_tokens: int) -> Tokenizer:
    """A start token, a token for each byte of the UTF-8 text, an end token: what a model needs to be tried without weights."""
    entries = {name: number for number, name in enumerate([*sorted(ByteLevel.alphabet()), "[CLS]", "[SEP]"])}
    tokenizer = Tokenizer(BPE(entries, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = BertProcessing(("[SEP]", entries["[SEP]"]), ("[CLS]", entries["[CLS]"]))
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def from_bert_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a published BERT state dict to this module's keys; tensors are passed on as they are.

    Only keys that are no parameters of a sentence encoder are dropped. An unknown key stays, for the strict load to
    show.
    """
    return {_our_key(key): tensor for key, tensor in state.items() if key not in _DROPPED_KEYS}


def _our_key(key: str) -> str:
    module, _, parameter = key.rpartition(".")
    if module in _EMBEDDING_NAMES:
        return f"{_EMBEDDING_NAMES[module]}.{parameter}"
    number, _, inner = module.removeprefix("encoder.layer.").partition(".")
    if number.isdecimal() and inner in _BLOCK_NAMES:
        return f"blocks.{number}.{_BLOCK_NAMES[inner]}.{parameter}"
    return key


def _check_texts(items: Sequence[str]) -> None:
    if isinstance(items, str):
        raise UsageError("preprocess takes a list of texts, got a single str: pass [text]")
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise UsageError(f"a text must be a str, item {number} is {type(item).__name__}")


def _check_inputs(ids_BT: torch.Tensor, mask_BT: torch.Tensor, positions: int) -> None:
    if ids_BT.ndim != 2 or mask_BT.shape != ids_BT.shape or mask_BT.dtype != torch.bool:
        raise UsageError(
            "forward takes (ids int[B, T], mask bool[B, T]) as preprocess returns them, got "
            f"{ids_BT.dtype}{list(ids_BT.shape)} and {mask_BT.dtype}{list(mask_BT.shape)}"
        )
    if ids_BT.shape[1] > positions:
        raise UsageError(f"the model has {positions} positions, got texts of {ids_BT.shape[1]} tokens: cut them first")


def _spread(tokens_ND: torch.Tensor, real_N: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Real tokens float[N, D] -> float[B, T, D], zero where the mask is False."""
    width = tokens_ND.shape[-1]
    return tokens_ND.new_zeros(mask_BT.numel(), width).index_copy(0, real_N, tokens_ND).view(*mask_BT.shape, width)


class SentenceEncoder(nn.Module):
    """Post-norm BERT encoder with learned positions and a mean over tokens. It has no dropout."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        vocabulary: int,
        positions: int,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.token_types = nn.Embedding(TOKEN_TYPES, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.tokenizer = tokenizer

    def preprocess(self, items: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts -> ids int[B, T] and mask bool[B, T], cut at max_tokens, padded on the right to the longest of them.

        The empty text is legal: it has its start and end tokens. Raises UsageError for anything that is not a str, and
        UsageError for a str that is no valid Unicode or when the module was built without a tokenizer.
        """
        _check_texts(items)
        if self.tokenizer is None:
            raise UsageError(
                f"expected an encoder with a tokenizer, but this one was built without weights and its vocabulary has no room "
                f"for {BYTE_ENTRIES} bytes: run `zoo fetch text/all-minilm-l6-v2` and build that model with its weights, or "
                f"build with tokenizer_path=..."
            )
        try:
            rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(items))]
        except TypeError as error:  # the library's only complaint about a str
            raise UsageError("a text must be valid Unicode, got a lone surrogate: decode it as UTF-8") from error
        lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.long)
        mask_BT = torch.arange(max(map(len, rows), default=0)) < lengths_B[:, None]
        ids_BT = torch.zeros(mask_BT.shape, dtype=torch.long)
        ids_BT[mask_BT] = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.long)
        return ids_BT, mask_BT

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Encoded:
        """(ids int[B, T], mask bool[B, T]) -> tokens float[B, T, D], mask, pooled float[B, D].

        Inputs may lie on any device. Tokens are zero where the mask is False. `pooled_BD` is the mean over real tokens,
        not normalised: divide by its length for cosine similarities. (A row without real tokens has the mean 0.)
        """
        ids_BT, mask_BT = (tensor.to(self.words.weight.device) for tensor in inputs)
        _check_inputs(ids_BT, mask_BT, self.positions.num_embeddings)
        rows_N, positions_N = mask_BT.nonzero(as_tuple=True)
        real_N = rows_N * mask_BT.shape[1] + positions_N
        tokens_ND = self.words(ids_BT.flatten()[real_N]) + self.positions(positions_N) + self.token_types.weight[0]
        tokens_ND = self.norm(tokens_ND)
        for block in self.blocks:
            tokens_ND = block(tokens_ND, real_N, mask_BT)
        tokens_BTD = _spread(tokens_ND, real_N, mask_BT)
        lengths_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
        return Encoded(tokens_BTD, mask_BT, tokens_BTD.sum(1) / lengths_B1)


class Block(nn.Module):
    """Self-attention, then a feed-forward with the exact GELU; each is added to its input, and the sum normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.narrow_norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, tokens_ND: torch.Tensor, real_N: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """float[N, D], with the places int[N] of the real tokens in the flattened mask bool[B, T] -> float[N, D]."""
        head_width = tokens_ND.shape[-1] // self.heads
        query_BHTK, key_BHTK, value_BHTK = (
            _spread(project(tokens_ND), real_N, mask_BT).view(*mask_BT.shape, self.heads, head_width).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed_BHTK = scaled_dot_product_attention(query_BHTK, key_BHTK, value_BHTK, attn_mask=mask_BT[:, None, None])
        mixed_ND = mixed_BHTK.transpose(1, 2).flatten(2).flatten(0, 1)[real_N]
        tokens_ND = self.attention_norm(tokens_ND + self.attention_output(mixed_ND))
        output_ND: torch.Tensor = self.narrow_norm(tokens_ND + self.narrow(gelu(self.widen(tokens_ND))))
        return output_ND
