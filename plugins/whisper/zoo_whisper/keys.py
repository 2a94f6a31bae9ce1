"""Names in a published Whisper -> ours: OpenAI's own `.pt`, a Hugging Face safetensors file, and CTranslate2's `model.bin`.

Tensors are passed on as they are, but for what CTranslate2 joined. An unknown key stays, for the strict load to show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

State = Mapping[str, torch.Tensor]

OPENAI = {
    "attn_ln": "attention_norm",
    "attn.query": "attention.query",
    "attn.key": "attention.key",
    "attn.value": "attention.value",
    "attn.out": "attention.output",
    "cross_attn_ln": "cross_norm",
    "cross_attn.query": "cross_attention.query",
    "cross_attn.key": "cross_attention.key",
    "cross_attn.value": "cross_attention.value",
    "cross_attn.out": "cross_attention.output",
    "mlp_ln": "feed_forward_norm",
    "mlp.0": "feed_forward.up",
    "mlp.2": "feed_forward.down",
}
HUGGING_FACE = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.output",
    "encoder_attn_layer_norm": "cross_norm",
    "encoder_attn.q_proj": "cross_attention.query",
    "encoder_attn.k_proj": "cross_attention.key",
    "encoder_attn.v_proj": "cross_attention.value",
    "encoder_attn.out_proj": "cross_attention.output",
    "final_layer_norm": "feed_forward_norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.down",
}
CTRANSLATE2 = {
    "self_attention/layer_norm": "attention_norm",
    "self_attention/linear_0": ("attention.query", "attention.key", "attention.value"),
    "self_attention/linear_1": "attention.output",
    "attention/layer_norm": "cross_norm",
    "attention/linear_0": "cross_attention.query",
    "attention/linear_1": ("cross_attention.key", "cross_attention.value"),
    "attention/linear_2": "cross_attention.output",
    "ffn/layer_norm": "feed_forward_norm",
    "ffn/linear_0": "feed_forward.up",
    "ffn/linear_1": "feed_forward.down",
}
TOPS = {
    "encoder.ln_post": "encoder.stack.norm",
    "decoder.ln": "decoder.stack.norm",
    "decoder.token_embedding": "decoder.embedding",
    "encoder.layer_norm": "encoder.stack.norm",
    "decoder.layer_norm": "decoder.stack.norm",
    "decoder.embed_tokens": "decoder.embedding",
    "decoder.embed_positions": "decoder.position_embedding",
}
CTRANSLATE2_TOPS = {
    "encoder/layer_norm": "encoder.stack.norm",
    "decoder/layer_norm": "decoder.stack.norm",
    "decoder/embeddings": "decoder.embedding",
}
# Not trained: computed, the head that is the embedding again, and what a converter notes beside the weights.
LEFT_OUT = re.compile(
    r"encoder\.(positional_embedding|embed_positions\.weight)|proj_out\.weight|encoder/position_encodings/encodings|"
    r"decoder/projection/weight|alignment_heads|.*(/num_heads|/activation|/scale_alignment|/pre_norm|/multi_query_attention|"
    r"/start_from_zero_embedding|/scale_embeddings|/alignment_layer|/alignment_heads|/layernorm_embedding|/sliding_window|_flag)"
)
_BLOCK = re.compile(r"(encoder|decoder)\.(?:blocks|layers)\.(\d+)\.(.+)\.(weight|bias)")
_CTRANSLATE2_BLOCK = re.compile(r"(encoder|decoder)/layer_(\d+)/(.+)/(weight|bias|gamma|beta)")
_PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def to_ours(state: State) -> dict[str, torch.Tensor]:
    """The tensors of a whole model under our names, as they are: loading widens each by itself."""
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = key.removeprefix("model.")
        if LEFT_OUT.fullmatch(name) or (tensor.ndim == 0 and "/" in name):
            continue
        renamed.update(_renamed(name, tensor))
    return renamed


def to_encoder(state: State) -> dict[str, torch.Tensor]:
    """As `to_ours`, for the encoder alone."""
    return {
        key.removeprefix("encoder."): tensor
        for key, tensor in to_ours(state).items()
        if key.startswith("encoder.") or not key.startswith("decoder.")
    }


def _renamed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if name in ("decoder.positional_embedding", "decoder/position_encodings/encodings"):
        return {"decoder.position_embedding.weight": tensor}
    block = _BLOCK.fullmatch(name)
    if block is not None:
        side, number, inner, parameter = block.groups()
        ours = OPENAI.get(inner) or HUGGING_FACE.get(inner)
        return {f"{side}.stack.blocks.{number}.{ours}.{parameter}" if ours else name: tensor}
    block = _CTRANSLATE2_BLOCK.fullmatch(name)
    if block is not None and block[3] in CTRANSLATE2:
        return _split(block, tensor)
    top, _, parameter = name.rpartition("/" if "/" in name else ".")
    top = CTRANSLATE2_TOPS.get(top) or TOPS.get(top) or top.replace("/", ".")
    return {f"{top}.{_PARAMETERS.get(parameter, parameter)}": tensor}


def _split(block: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """CTranslate2 joins projections of one input, and gives the keys a bias of zeros, which the model does not have."""
    side, number, inner, parameter = block.groups()
    ours = CTRANSLATE2[inner]
    names = (ours,) if isinstance(ours, str) else ours
    parts = tensor.chunk(len(names))
    return {
        f"{side}.stack.blocks.{number}.{name}.{_PARAMETERS[parameter]}": part
        for name, part in zip(names, parts, strict=True)
        if not (name.endswith(".key") and parameter == "bias" and not bool(part.any()))
    }
