"""The parts that sequence models are made of, one operation a file, plain PyTorch.

    norm.py          RMS normalisation                      cache.py           keys and values of what was read already
    positions.py     rotary, ALiBi, relative, learned, sinusoidal
    attention.py     many, grouped or one key/value head    mixture.py         many feed-forwards, few used for each token
    feed_forward.py  dense and gated                        block.py           attention and feed-forward, each beside a residual
    stack.py         blocks over a sequence                 decoder.py         tokens -> the logits of the next one
    bidirectional.py masked language models                 encoder_decoder.py a decoder that reads what an encoder wrote
    seen_media.py    which media a token sees               gated_cross_attention.py   how it sees them
    extension.py     the seam for what stands on a model    memory.py          memory that goes back to the system, copies that share it
    stamp.py           whether a module is still as it was
    kernels/         what a kernel is, the exact one, a whole model by one, a decode step as straight code
    tokenizer.py     what every tokenizer refuses, and one that needs no file

Shapes follow `zoo.registry.modality` (B batch, T tokens, W decoder width, H heads) with five more letters: G key/value heads, K width
of a head, S slots of a cache or tokens of a source, V vocabulary, E experts. Nothing here knows a model by name: an
architecture is a function that composes these parts, in the plugin that brings it.
"""

from zoo.nn.attention import Attention
from zoo.nn.bidirectional import Bidirectional
from zoo.nn.block import Block, Visible
from zoo.nn.cache import Cache
from zoo.nn.decoder import Decoder
from zoo.nn.encoder_decoder import EncoderDecoder
from zoo.nn.extension import refuse_virtual_tokens
from zoo.nn.feed_forward import Dense, Gated, activation_function
from zoo.nn.gated_cross_attention import GatedCrossAttention
from zoo.nn.memory import copy_sharing, give_back_memory
from zoo.nn.mixture import Mixture, Routing, balance_loss
from zoo.nn.norm import RMSNorm
from zoo.nn.positions import Alibi, LearnedPositions, RelativeBias, Rotary, alibi_slopes, rotary_frequencies, sinusoids
from zoo.nn.processor import multiplies_in_bfloat16
from zoo.nn.stack import Reading, Stack
from zoo.nn.stamp import Unchanged
from zoo.nn.tokenizer import BYTES, END, START, ByteTokenizer, check_expressions, check_text, check_token

__all__ = [
    "BYTES",
    "END",
    "START",
    "Alibi",
    "Attention",
    "Bidirectional",
    "Block",
    "ByteTokenizer",
    "Cache",
    "Decoder",
    "Dense",
    "EncoderDecoder",
    "Gated",
    "GatedCrossAttention",
    "LearnedPositions",
    "Mixture",
    "RMSNorm",
    "Reading",
    "RelativeBias",
    "Rotary",
    "Routing",
    "Stack",
    "Unchanged",
    "Visible",
    "activation_function",
    "alibi_slopes",
    "balance_loss",
    "check_expressions",
    "check_text",
    "check_token",
    "copy_sharing",
    "give_back_memory",
    "multiplies_in_bfloat16",
    "refuse_virtual_tokens",
    "rotary_frequencies",
    "sinusoids",
]
