"""What the peers of the decoder load, made once from its GGUF file into a folder and kept there; nothing of this is timed.

transformers-fp32 and -bf16 are folders of safetensors: weights dequantised, llama.cpp's permutation of q and k undone. The file itself
is Q4_1 with its table and head in Q8_0, so "quantised twice" is what every other format of four bits is: Q4_0 is llama.cpp's own
requantisation of the dequantised weights, and ONNX Runtime's int4 is that of its model builder. Eight bits lose little of the 16 values
of a block. OpenVINO GenAI reads a GGUF itself (Q4_1 with its minimum rounded to a multiple of the scale, so not the same numbers) and
saves what it made of it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

NAMES = {  # of the modules: llama.cpp's, and those of transformers
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}

FP32 = "transformers-fp32"
ORT_OPTIONS = {
    "int4": ["--extra_options", "algo_config=rtn", "is_symmetric=false", "matmul_mixed_precision=last_matmul:int8"],
    "int8": [],
}


def prepared(peer: str, gguf: Path, work: Path) -> Path:
    """What the peer loads, made now if it is not there yet. Raises RuntimeError where another peer's Python has to make it first."""
    engine, _, weights = peer.partition("-")
    if engine == "zoo" or peer == "llama.cpp-q4_1":
        return gguf
    if engine not in MAKERS:
        raise RuntimeError(f"nothing makes the weights of {peer}")
    target = work / (f"{peer}.gguf" if engine == "llama.cpp" else peer)
    if not target.exists():
        draft = target.with_name(f"{target.name}.draft")
        if draft.is_dir():
            shutil.rmtree(draft)
        work.mkdir(parents=True, exist_ok=True)
        MAKERS[engine](weights, gguf, draft)
        draft.rename(target)
    return target


def _transformers(weights: str, gguf: Path, draft: Path) -> None:
    convert(gguf, draft, {"bf16": "bfloat16", "fp32": "float32"}[weights])


def _llama_cpp(weights: str, gguf: Path, draft: Path) -> None:
    """The file in another format; llama.cpp keeps the table in Q8_0, which has no rows of a multiple of 256."""
    import llama_cpp as c

    options = c.llama_model_quantize_default_params()
    options.ftype = {"q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0}[weights]
    options.allow_requantize = True
    if c.llama_model_quantize(os.fsencode(gguf), os.fsencode(draft), options):
        raise RuntimeError(f"llama.cpp does not write {weights}")


def _ctranslate2(weights: str, gguf: Path, draft: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    folder = prepared(FP32, gguf, draft.parent)
    TransformersConverter(str(folder), copy_files=["tokenizer.json"]).convert(str(draft), quantization=weights)


def _openvino(weights: str, gguf: Path, draft: Path) -> None:
    """GenAI saves the model and the tokenizer beside the file that it reads, and by its name it knows that it is a GGUF."""
    from openvino_genai import LLMPipeline

    source = gguf if weights == "q4_1" else draft.with_name(f"llama.cpp-{weights}.gguf")
    if not source.exists():
        raise RuntimeError(f"{source} is missing: run the peer llama.cpp-{weights} first")
    draft.mkdir()
    link = draft / "model.gguf"
    link.symlink_to(source.resolve())
    LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
    link.unlink()


def _ortgenai(weights: str, gguf: Path, draft: Path) -> None:
    """By the model builder, four bits with a zero point and the head in eight: its default without both does not say Paris."""
    folder, cache = prepared(FP32, gguf, draft.parent), draft / "cache"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", weights, "-c", str(cache)]
    command += ["-i", str(folder), "-o", str(draft), *ORT_OPTIONS[weights]]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise RuntimeError(f"the model builder failed: {built.stderr[-2000:]}")


MAKERS: dict[str, Callable[[str, Path, Path], None]] = {
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
    "ctranslate2": _ctranslate2,
    "openvino": _openvino,
    "ortgenai": _ortgenai,
}


def convert(gguf: Path, folder: Path, dtype: str) -> None:
    """A folder for `from_pretrained`: weights, configuration and tokenizer of the GGUF."""
    import torch
    from gguf import GGUFReader, dequantize
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    reader, state = GGUFReader(gguf), {}
    told = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items()}
    words, heads = told["tokenizer.ggml.tokens"], {"q": told["attention.head_count"], "k": told["attention.head_count_kv"]}
    for tensor in reader.tensors:
        weight, parts = dequantize(tensor.data, tensor.tensor_type), tensor.name.split(".")
        if parts[-2] in {"attn_q", "attn_k"}:  # llama.cpp interleaves the two halves of each rotary head
            halves = weight.reshape(heads[parts[-2][-1]], -1, 2, weight.shape[1])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        layer = f"layers.{parts[1]}." if parts[0] == "blk" else ""
        state[f"model.{layer}{NAMES[parts[-2]]}.weight"] = torch.from_numpy(weight.copy())
    shape = {"hidden_size": told["embedding_length"], "intermediate_size": told["feed_forward_length"]}
    shape |= {"num_hidden_layers": told["block_count"], "max_position_embeddings": told["context_length"]}
    shape |= {"num_attention_heads": heads["q"], "num_key_value_heads": heads["k"], "vocab_size": len(words)}
    special = {f"{name}_token_id": told[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    rope = {"rope_type": "default", "rope_theta": told["rope.freq_base"]}
    tuned = {"rms_norm_eps": told["attention.layer_norm_rms_epsilon"], "rope_parameters": rope, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**shape, **special, **tuned))
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    merges = [tuple(merge.split(" ", 1)) for merge in told["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([digits, byte_level]), decoders.ByteLevel()
    kinds = told["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([word for word, kind in zip(words, kinds, strict=True) if kind == 3])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {name.removesuffix("_id"): words[index] for name, index in special.items()} | {"unk_token": words[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))
