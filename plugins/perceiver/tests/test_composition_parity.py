"""Whole compositions against those of others, with the same weights: OpenFlamingo's `Flamingo`, and Idefics of transformers.

Both are decoders of the Llama kind with a resampler over features that are given, and gated layers; both let the feed-forward of those
go over tokens that see no image, and of images in a row show the last. Logits agree to 1e-5 of the largest.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bridge_cases import features, shaken
from open_flamingo_reference import VERSION, WHEEL_SHA256, reference
from torch import nn
from zoo_perceiver.open_flamingo import load_checkpoint
from zoo_perceiver.resampler import from_open_flamingo, resampler

from zoo.decoding.generation import generate
from zoo.decoding.prompt import Prompt
from zoo.errors import UsageError, WeightsError
from zoo.models.composition_parts import gated_layer
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import Item, Placed
from zoo.models.fusion.sense import Sense
from zoo.nn.attention import Attention
from zoo.nn.feed_forward import Gated
from zoo.nn.gated_cross_attention import GatedCrossAttention
from zoo.nn.norm import RMSNorm
from zoo.weights.stores import fetch_wheel
from zoo.weights.strict_load import load_strict

transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
llama = pytest.importorskip("zoo_lm.llama", reason="the decoder is that of the plugin lm: pip install ./plugins/lm")

VOCABULARY, MARKER, WIDTH, HIDDEN, LAYERS, HEADS, FEATURES, CONTEXT = 61, 60, 32, 48, 4, 4, 24, 64
MODULE = "published_open_flamingo"
M = MARKER
ROWS = [  # text before the first image, images in a row, one at the end, one alone, none
    [3, 5, M, 7, 8, 9, M, M, 4, 6, 2, M],
    [M, 11, 12, M, 13, 14, 15, 16],
    [21, 22, 23, 24, 25, M],
    [31, 32, 33],
]
FLAMINGO_NAMES = {
    "attn.norm": "attention_norm",
    "attn.to_q": "attention.query",
    "attn.to_k": "attention.key",
    "attn.to_v": "attention.value",
    "attn.to_out": "attention.output",
    "attn_gate": "attention_gate",
    "ff.0": "feed_forward_norm",
    "ff.1": "feed_forward.up",
    "ff.3": "feed_forward.down",
    "ff_gate": "feed_forward_gate",
}
IDEFICS_NAMES = {
    "input_layernorm": "attention_norm",
    "cross_attn.q_proj": "attention.query",
    "cross_attn.k_proj": "attention.key",
    "cross_attn.v_proj": "attention.value",
    "cross_attn.o_proj": "attention.output",
    "alpha_cross_attn": "attention_gate",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
    "alpha_dense": "feed_forward_gate",
}
IDEFICS_RESAMPLER_NAMES = {
    "latents": "first_latents",
    "0.context_layer_norm": "feature_norm",
    "0.latents_layer_norm": "latent_norm",
    "0.q_proj": "attention.query",
    "0.k_proj": "attention.key",
    "0.v_proj": "attention.value",
    "0.output_proj": "attention.output",
    "1.ln": "feed_forward_norm",
    "1.fc": "feed_forward.up",
    "1.c_proj": "feed_forward.down",
    "layer_norm": "last_norm",
}

State = Mapping[str, torch.Tensor]


def below(state: State, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def renamed(state: State, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """By the name of a module or of a parameter; every one must be known."""
    found = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        found[names[name] if name in names else f"{names[module]}.{kind}"] = tensor
    return found


def images(rows: Sequence[Sequence[int]], count: int = 5) -> torch.Tensor:
    """Features float[B, N, v, D] of as many images for each row as the row with the most has; the others' last are never seen."""
    most = max(row.count(MARKER) for row in rows)
    return torch.randn(len(rows), most, count, FEATURES, generator=torch.Generator().manual_seed(7))


def placed(row: Sequence[int], features_NVD: torch.Tensor, name: str) -> tuple[Placed, ...]:
    at = [place for place, token in enumerate(row) if token == MARKER]
    return tuple(
        Placed(position, 1, Item("image", (), f"{name} {number}", features(features_NVD[number : number + 1])))
        for number, position in enumerate(at)
    )


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens padded on the left with 1, and which are real."""
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([[1] * (longest - len(row)) + list(row) for row in rows])
    return tokens_BT, torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])


def difference(theirs_BTV: torch.Tensor, ours_BTV: torch.Tensor, mask_BT: torch.Tensor) -> float:
    """Of real tokens, over the largest logit."""
    theirs_NV, ours_NV = theirs_BTV[mask_BT], ours_BTV[mask_BT]
    return float((theirs_NV - ours_NV).abs().max() / theirs_NV.abs().max())


def decoder(state: State, kv_heads: int) -> Any:
    module = llama.build(
        layers=LAYERS, width=WIDTH, heads=HEADS, kv_heads=kv_heads, hidden=HIDDEN, vocabulary=VOCABULARY, context=CONTEXT,
        epsilon=1e-6,
    )  # fmt: skip
    load_strict(module, llama.from_transformers(state), "theirs")
    module.tokenizer = None
    return module.eval()


# OpenFlamingo


class GivenFeatures(nn.Module):
    """Pictures are features already, float[N, 1, v, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = self.forward

    def forward(self, features_N1VD: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, features_N1VD[:, 0]


@pytest.fixture(scope="module")
def published() -> Iterator[ModuleType]:
    """The modules of OpenFlamingo out of its wheel, without its `__init__`, which would import the loading of CLIPs."""
    reference()
    package = ModuleType(MODULE)
    package.__path__ = [f"{fetch_wheel('open_flamingo', VERSION, WHEEL_SHA256)}/open_flamingo/src"]
    sys.modules[MODULE] = package
    for name in ("flamingo", "flamingo_lm", "utils"):
        import_module(f"{MODULE}.{name}")
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == MODULE]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def flamingos(published: ModuleType) -> tuple[Any, Fused]:
    """Theirs, and ours with its weights."""
    modules: Any = published
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    language = transformers.LlamaForCausalLM(config)
    modules.utils.extend_instance(language, modules.flamingo_lm.FlamingoLMMixin)
    modules.flamingo_lm.FlamingoLMMixin.forward.__defaults__ = (
        None,
    )  # transformers 5 leaves out a mask that hides nothing
    language.set_decoder_layers_attr_name("model.layers")
    theirs = modules.flamingo.Flamingo(
        GivenFeatures(), language, eoc_token_id=59, media_token_id=MARKER, vis_dim=FEATURES, cross_attn_every_n_layers=2
    )
    shaken(theirs)
    state = theirs.state_dict()
    kept = below(state, "lang_encoder.")
    plain = {name: kept[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")}
    blocks = {f"model.layers.{name}": tensor for name, tensor in below(kept, "old_decoder_blocks.").items()}
    bridge = resampler(input_width=FEATURES)
    load_strict(bridge, from_open_flamingo(below(state, "perceiver.")), "theirs")
    layers = {}
    for layer in (1, 3):
        gated = below(kept, f"gated_cross_attn_layers.{layer}.")
        gated["attn.to_k.weight"], gated["attn.to_v.weight"] = gated.pop("attn.to_kv.weight").chunk(2)
        layers[layer] = gated_layer(WIDTH, FEATURES, heads=8, head_width=64, hidden_factor=4, gate=0.0, feeds_all=True)
        load_strict(layers[layer], renamed(gated, FLAMINGO_NAMES), "theirs")
    ours = Fused(decoder({**plain, **blocks}, 2), {"image": Sense(encoder=None, bridge=bridge, layers=layers)})
    return theirs, ours.eval()


def flamingo_logits(theirs: Any, tokens_BT: torch.Tensor, mask_BT: torch.Tensor, images_BNVD: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = theirs(images_BNVD[:, :, None, None], tokens_BT, attention_mask=mask_BT.long()).logits
    return logits


def test_open_flamingo(flamingos: tuple[Any, Fused]) -> None:
    theirs, ours = flamingos
    images_BNVD, (tokens_BT, mask_BT) = images(ROWS), padded(ROWS)
    expected_BTV = flamingo_logits(theirs, tokens_BT, mask_BT, images_BNVD)
    media = [
        placed(row, images_NVD, str(number)) for number, (row, images_NVD) in enumerate(zip(ROWS, images_BNVD, strict=True))
    ]
    with torch.no_grad():
        assert difference(expected_BTV, ours(tokens_BT, mask_BT=mask_BT, media=media), mask_BT) < 1e-5
        without = [() for _ in ROWS]
        assert difference(expected_BTV, ours(tokens_BT, mask_BT=mask_BT, media=without), mask_BT) > 1e-2


@pytest.mark.parametrize("cut", [1, 3, 7, 8, 11])
def test_open_flamingo_in_parts(flamingos: tuple[Any, Fused], cut: int) -> None:
    """A beginning, then one token after another, is the whole: where theirs would show every new token the last image, too."""
    theirs, ours = flamingos
    row, images_BNVD = ROWS[0], images(ROWS[:1])
    tokens_1T = torch.tensor([row])
    expected_1TV = flamingo_logits(theirs, tokens_1T, torch.ones_like(tokens_1T), images_BNVD)
    media, cache = placed(row, images_BNVD[0], "x"), ours.new_cache(1, len(row))
    bounds = [0, *range(cut, len(row) + 1)]
    found = []
    with torch.inference_mode():
        for begin, end in pairwise(bounds):
            of_part = [one.moved(-begin) for one in media if begin <= one.position < end]
            found.append(ours(tokens_1T[:, begin:end], cache=cache, media=[of_part]))
    assert difference(expected_1TV, torch.cat(found, 1), torch.ones_like(tokens_1T, dtype=torch.bool)) < 1e-5


@pytest.mark.parametrize("row", ROWS[:3], ids=["four images", "two images", "one image"])
def test_open_flamingo_generates(flamingos: tuple[Any, Fused], row: list[int]) -> None:
    theirs, ours = flamingos
    images_BNVD, ids_1T = images([row]), torch.tensor([row])
    with torch.no_grad():
        answer_1T = theirs.generate(
            images_BNVD[:, :, None, None], ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=9, do_sample=False,
            eos_token_id=VOCABULARY, pad_token_id=0,
        )  # fmt: skip
    expected = answer_1T[0, len(row) :].tolist()
    assert MARKER not in expected  # from where on theirs would look for an image that is not there
    found = generate(ours, [Prompt(tuple(row), placed(row, images_BNVD[0], "x"))], max_tokens=9)
    assert list(found[0].ids) == expected


def trained_alone(state: State) -> dict[str, torch.Tensor]:
    """What OpenFlamingo saves of a state dict (`filter_state_dict_to_trainable` of 2.0.1): the trained, and embeddings."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith("perceiver.") or ".gated_cross_attn_layer." in name or "embed_tokens" in name
    }


def composed_as(theirs: Any, **shape: Any) -> Fused:
    """A composition of the shape that theirs has, with other numbers but for the decoder's."""
    kept = below(theirs.state_dict(), "lang_encoder.")
    plain = {name: kept[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")}
    blocks = {f"model.layers.{name}": tensor for name, tensor in below(kept, "old_decoder_blocks.").items()}
    shape = {"heads": 8, "head_width": 64, "hidden_factor": 4, "gate": 0.0, "feeds_all": True, **shape}
    layers = {layer: gated_layer(WIDTH, FEATURES, **shape) for layer in (1, 3)}
    sense = Sense(encoder=None, bridge=resampler(input_width=FEATURES), layers=layers)
    return Fused(decoder({**plain, **blocks}, 2), {"image": sense}).eval()


@pytest.mark.parametrize("whole", [False, True], ids=["as it is saved", "a whole state dict"])
def test_a_checkpoint_of_open_flamingo(flamingos: tuple[Any, Fused], tmp_path: Path, whole: bool) -> None:
    theirs, same = flamingos
    state = trained_alone(theirs.state_dict())
    if whole:
        state |= {name: one for name, one in theirs.state_dict().items() if "gated_cross_attn_layers" in name}
    torch.save(state, tmp_path / "checkpoint.pt")
    ours = composed_as(theirs)
    torch.nn.init.zeros_(ours.decoder.embedding.weight)
    load_checkpoint(ours, tmp_path / "checkpoint.pt")
    for (name, one), other in zip(ours.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_checkpoint_that_does_not_fit_is_refused(flamingos: tuple[Any, Fused], tmp_path: Path) -> None:
    theirs, _ = flamingos
    file, state = tmp_path / "checkpoint.pt", trained_alone(theirs.state_dict())
    lacking = "lang_encoder.model.layers.3.gated_cross_attn_layer.ff_gate"
    for change, shape, message in (
        ({lacking: None}, {}, "missing     gated.3.feed_forward_gate [1]"),
        ({"lang_encoder.model.layers.0.other": torch.ones(1)}, {}, "unexpected  lang_encoder.model.layers.0.other [1]"),
        ({}, {"hidden_factor": 2}, "shape       gated.1.feed_forward.up.weight [128, 32], the model has [64, 32]"),
        ({"lang_encoder.gated_cross_attn_layers.3.ff_gate": torch.ones(1)}, {}, "stands twice in the checkpoint, and the two differ"),
        ({"perceiver.latents": torch.full_like(state["perceiver.latents"], float("nan"))}, {}, "holds NaN or infinity in bridge.first_latents"),
    ):  # fmt: skip
        torch.save({name: one for name, one in (state | change).items() if one is not None}, file)
        with pytest.raises(WeightsError) as caught:
            load_checkpoint(composed_as(theirs, **shape), file)
        assert message in str(caught.value)
    with pytest.raises(
        UsageError, match="a checkpoint of OpenFlamingo is for a model with a gated sense for audio: compose one first"
    ):
        load_checkpoint(composed_as(theirs), file, modality="audio")


# Idefics


def idefics(alpha: str) -> tuple[Any, Fused]:
    """Theirs, and ours with its weights. alpha: "float", a gate for each layer, or "vector", one for each feature."""
    torch.manual_seed(0)
    config = transformers.IdeficsConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, alpha_type=alpha, cross_layer_interval=2, use_resampler=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
        vision_config={"embed_dim": FEATURES, "image_size": 8, "patch_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
                       "num_attention_heads": 2},
        perceiver_config={"use_resampler": True, "resampler_n_latents": 6, "resampler_depth": 3, "resampler_n_heads": 3,
                          "resampler_head_dim": 8},
    )  # fmt: skip
    theirs = transformers.IdeficsForVisionText2Text(config)
    shaken(theirs)
    state = theirs.state_dict()
    own = ("model.vision_model.", "model.perceiver_resampler.", "model.gated_cross_attn_layers.")
    bridge = resampler(input_width=FEATURES, latents=6, layers=3, heads=3, head_width=8, activation="relu")
    of_resampler = {}
    for name, tensor in below(state, "model.perceiver_resampler.").items():
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            of_resampler |= {
                f"layers.{layer}.{ours}": one for ours, one in renamed({rest: tensor}, IDEFICS_RESAMPLER_NAMES).items()
            }
        else:
            of_resampler |= renamed({name: tensor}, IDEFICS_RESAMPLER_NAMES)
    load_strict(bridge, of_resampler, "theirs")
    layers = {}
    for number in range(2):
        layers[2 * number] = GatedCrossAttention(
            attention_norm=RMSNorm(WIDTH),
            attention=Attention(WIDTH, heads=HEADS, source_width=FEATURES),
            feed_forward_norm=RMSNorm(WIDTH),
            feed_forward=Gated(WIDTH, HIDDEN),
            gate_values=1 if alpha == "float" else WIDTH,
            feeds_all=True,
        )
        gated = renamed(below(state, f"model.gated_cross_attn_layers.{number}."), IDEFICS_NAMES)
        gates = {name: tensor.flatten() for name, tensor in gated.items() if name.endswith("_gate")}
        load_strict(layers[2 * number], gated | gates, "theirs")
    language = decoder({name: tensor for name, tensor in state.items() if not name.startswith(own)}, HEADS)
    return theirs, Fused(language, {"image": Sense(encoder=None, bridge=bridge, layers=layers)}).eval()


def seen_images(tokens_BT: torch.Tensor, most: int) -> torch.Tensor:
    """Which image each token sees, one-hot [B, T, N], as the processor of Idefics says it."""
    processing = import_module("transformers.models.idefics.processing_idefics")
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda _: MARKER, eos_token_id=-1)
    seen_BT, _ = processing.image_attention_mask_for_packed_input_ids(tokens_BT, tokenizer, "pt")
    seen_BTN: torch.Tensor = processing.incremental_to_binary_attention_mask(seen_BT, "pt", num_classes=most)
    return seen_BTN


@pytest.mark.parametrize("alpha", ["float", "vector"])
def test_idefics(alpha: str) -> None:
    theirs, ours = idefics(alpha)
    images_BNVD, (tokens_BT, mask_BT) = images(ROWS), padded(ROWS)
    media = [
        placed(row, images_NVD, str(number)) for number, (row, images_NVD) in enumerate(zip(ROWS, images_BNVD, strict=True))
    ]
    with torch.no_grad():
        expected_BTV = theirs(
            input_ids=tokens_BT,
            attention_mask=mask_BT.long(),
            image_encoder_embeddings=images_BNVD,
            image_attention_mask=seen_images(tokens_BT, images_BNVD.shape[1]),
        ).logits
        assert difference(expected_BTV, ours(tokens_BT, mask_BT=mask_BT, media=media), mask_BT) < 1e-5
        without = [() for _ in ROWS]
        assert difference(expected_BTV, ours(tokens_BT, mask_BT=mask_BT, media=without), mask_BT) > 1e-2
