"""OpenFlamingo's own model around a transformers Llama, its code as published: what `fusion_speed.py` measures ours against.

`flamingo.py`, `flamingo_lm.py`, `helpers.py` and `utils.py` are read out of the wheel of open_flamingo 2.0.1, which is fetched and never
installed (it asks for torch 2.0.1); they need einops and einops_exts. What is done to them, and why:

- the package's own `__init__` is passed over: it imports the factory, which loads a CLIP by open_clip, and no picture is read here;
- `FlamingoLMMixin.forward` takes no attention mask as None: transformers 5 leaves out a mask that hides nothing, and the method
  demands one. Nothing else is changed, `generate()` included: transformers runs its loop, and the mixin conditions its layers;
- the vision encoder is one that gives the features it is given: both sides begin at features.

What its caching does, and is part of what is measured: `generate()` keeps the latents of a prompt while it runs, projects all of them
to keys and values before every gated layer at every token, and hides all but the last item's by a mask. `cache_media()` keeps the
latents between calls of `forward()`, "not meant to be used to cache things for generate()"; with the keys and values of the decoder
that transformers returns it answers a second question without reading the first prompt again (`Conversation`). It was written for
scoring class names; here it is driven by hand, as a peer that does its best.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from zoo.weights.stores import fetch_wheel

WHEEL = ("open_flamingo", "2.0.1", "df55893ef74a0691f7ce54592c1ca155a8e246160e2a658086031bf6b5eddbc8")

PACKAGE = "published_open_flamingo"  # what its modules are called here


class Shape(NamedTuple):
    """SmolLM2-135M, a resampler of 64 latents in 6 layers over features of CLIP ViT-L/14, gated layers before every fourth layer.

    The resampler and the gated layers have no sizes here: open_flamingo builds them with 8 heads of 64, and 64 latents in 6 layers.
    """

    layers: int = 30
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    hidden: int = 1536
    vocabulary: int = 49152
    context: int = 2048
    theta: float = 100_000.0
    epsilon: float = 1e-5
    every: int = 4
    feature_width: int = 1024
    gate: float = 0.5

    @property
    def marker(self) -> int:
        """The token that stands for an image."""
        return self.vocabulary - 1

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.vocabulary - 2


class Features(nn.Module):
    """A vision encoder for which pictures are features already, float[N, 1, v, D]; it gives what open_clip's does, (pooled, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = self.forward

    def forward(self, features_N1VD: torch.Tensor) -> tuple[None, torch.Tensor]:
        """float[N, 1, v, D] -> (None, float[N, v, D])."""
        return None, features_N1VD[:, 0]


class Stamps:
    """A streamer of transformers: calls `clock` at each token; the first call, with the prompt, says nothing."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.times = clock, []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(self.clock())

    def end(self) -> None:
        pass


def open_flamingo() -> tuple[Any, Any, Any]:
    """(Flamingo, FlamingoLMMixin, extend_instance) out of the wheel."""
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = [f"{fetch_wheel(*WHEEL)}/open_flamingo/src"]
    whole, language, tools = (import_module(f"{PACKAGE}.{name}") for name in ("flamingo", "flamingo_lm", "utils"))
    language.FlamingoLMMixin.forward.__defaults__ = (None,)
    return whole.Flamingo, language.FlamingoLMMixin, tools.extend_instance


def flamingo(shape: Shape) -> Any:
    """The whole with random weights; the decoder is frozen, its embedding too, what was added is trained."""
    model_class, mixin, extend_instance = open_flamingo()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=shape.end,
        pad_token_id=shape.end,
    )
    torch.manual_seed(0)
    language = LlamaForCausalLM(config)
    extend_instance(language, mixin)
    language.set_decoder_layers_attr_name("model.layers")
    model = model_class(
        Features(),
        language,
        eoc_token_id=shape.end,
        media_token_id=shape.marker,
        vis_dim=shape.feature_width,
        cross_attn_every_n_layers=shape.every,
    )
    model.requires_grad_(False)
    model.perceiver.requires_grad_(True)
    model.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
    with torch.no_grad():
        for layer in model.lang_encoder.gated_cross_attn_layers:
            if layer is not None:
                layer.attn_gate.fill_(shape.gate)
                layer.ff_gate.fill_(shape.gate)
    return model.eval()


def pictures(features_BNVD: torch.Tensor) -> torch.Tensor:
    """Features of the items of each row as its `vision_x`, (B, T, F, C, H, W)."""
    return features_BNVD[:, :, None, None]


def answer(
    model: Any, features_BNVD: torch.Tensor, ids: list[int], tokens: int, clock: Any
) -> tuple[list[int], list[float]]:
    """Greedy `generate()` of exactly so many tokens: (the tokens, when each was there)."""
    stamps = Stamps(clock)
    ids_1T = torch.tensor([ids])
    with torch.inference_mode():
        output_1T = model.generate(
            pictures(features_BNVD), ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=tokens, do_sample=False,
            streamer=stamps,
        )  # fmt: skip
    return output_1T[0, len(ids) :].tolist(), stamps.times[1:]


class Conversation:
    """Questions after one prompt that was read once: `cache_media()`, `forward()` and the cache of transformers, by hand."""

    def __init__(self, model: Any, features_BNVD: torch.Tensor, ids: list[int]) -> None:
        self.model, self.ids = model, ids
        with torch.inference_mode():
            model.cache_media(torch.tensor([ids]), pictures(features_BNVD))
            self.cache = self._read(ids).past_key_values

    def answer(self, ids: list[int], tokens: int) -> list[int]:
        """The greedy answer to a question without media, after which the prompt alone is held again."""
        found: list[int] = []
        with torch.inference_mode():
            left = ids
            while len(found) < tokens:
                found.append(int(self._read(left).logits[0, -1].argmax()))
                left = found[-1:]
            self.cache.crop(len(self.ids) - self.cache.get_seq_length())  # below zero: so many of the last
        return found

    def close(self) -> None:
        self.model.uncache_media()

    def _read(self, ids: list[int]) -> Any:
        return self.model(
            None,
            torch.tensor([ids]),
            clear_conditioned_layers=False,
            past_key_values=getattr(self, "cache", None),
            use_cache=True,
        )


def training_step(model: Any, features_BNVD: torch.Tensor, tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> float:
    """Forward and backward, as its `train_one_epoch` has them; returns the loss."""
    model.zero_grad(set_to_none=True)
    loss = model(pictures(features_BNVD), tokens_BT, attention_mask=torch.ones_like(tokens_BT), labels=labels_BT)[0]
    loss.backward()
    return float(loss.detach())
