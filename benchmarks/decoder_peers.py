"""One task of one peer of the decoder (SmolLM2-135M-Instruct from its Q4_1 GGUF), run once in a fresh process; one JSON line.

    python benchmarks/decoder_peers.py --peer transformers-fp32 --gguf SmolLM2-135M-Instruct.Q4_1.gguf --threads 2 --task decode1

Run it by the interpreter that has the peer: one with llama-cpp-python, or ctranslate2 and tokenizers, or torch, transformers and gguf.

Tasks: decode1 and decode8 time 64 greedy steps after a 16-token prompt in 1 or 8 rows, end tokens ignored; prefill512 times a prompt
of 512 tokens up to its last logits; both after a warm-up of the same. first-token is the wall time from the spawn of the process to
the first token of "The capital of France is" (it fails unless that is " Paris"), with the file cache as the caller left it.

Peers: zoo-KERNEL is ours, with the weights from the cache of the zoo (zoo fetch smollm/135m-instruct), which are the same file.
llama.cpp reads the GGUF through its C interface (what `llama_cpp` binds), and decode8 is eight sequences in one llama_batch.
The transformers peers load an ordinary folder of safetensors, made once from the GGUF under --cache and not timed: weights
dequantised, llama.cpp's permutation of q and k undone, saved as fp32 or bf16, so that first-token converts nothing. They run the bare
model in a loop on its own cache of keys and values, which is faster than `generate()`, and import the class itself and `tokenizers`,
not the Auto classes. ctranslate2 is the fp32 folder converted to int8 by hand, by a Python that sees torch and ctranslate2:

    python -m ctranslate2.converters.transformers --model CACHE/transformers-fp32 --output_dir CACHE/ctranslate2 \
        --quantization int8 --copy_files tokenizer.json
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

PROMPT, ANSWER = "The capital of France is", " Paris"
STEPS = 64
ROWS = {"decode1": 1, "decode8": 8, "prefill512": 1, "first-token": 1}
NAMES = {  # of the modules: llama.cpp's, and those of transformers
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}

Rows = list[list[int]]
Run = tuple[list[int], float, float]  # tokens of the last row, seconds up to the first and from there to the last


class Peer(NamedTuple):
    """A loaded model: text to tokens, and greedy decoding of prompts of equal length by so many steps after the first token."""

    encode: Callable[[str], list[int]]
    run: Callable[[Rows, int], Run]


def stepped(step: Callable[[Rows, int], list[int]], prompts: Rows, steps: int) -> Run:
    """Greedy decoding by a function from one more token of each row (or its prompt) and their position to the next of each."""
    start, row = time.monotonic(), step(prompts, 0)
    middle, tokens = time.monotonic(), [row[-1]]
    for position in range(len(prompts[0]), len(prompts[0]) + steps):
        row = step([[token] for token in row], position)
        tokens.append(row[-1])
    return tokens, middle - start, time.monotonic() - middle


def llama_cpp(path: Path, threads: int, rows: int) -> Peer:
    import llama_cpp as c
    import numpy as np

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    c.llama_backend_init()
    model = c.llama_model_load_from_file(os.fsencode(path), c.llama_model_default_params())
    options = c.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = max(1024, 256 * rows), 512, 512, rows
    options.n_threads = options.n_threads_batch = threads
    context, vocabulary = c.llama_init_from_model(model, options), c.llama_model_get_vocab(model)
    width, batch = c.llama_vocab_n_tokens(vocabulary), c.llama_batch_init(512, 0, 1)

    def encode(text: str) -> list[int]:
        ids, raw = (c.llama_token * 64)(), text.encode()
        return list(ids[: c.llama_tokenize(vocabulary, raw, len(raw), ids, 64, False, False)])

    def step(tokens: Rows, position: int) -> list[int]:
        last: list[int] = []
        entries = [(row, index, token) for row, ids in enumerate(tokens) for index, token in enumerate(ids)]
        for place, (row, index, token) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, position + index
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            batch.logits[place] = index == len(tokens[row]) - 1
            last += [place] if batch.logits[place] else []
        batch.n_tokens = len(entries)
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        logits = [np.ctypeslib.as_array(c.llama_get_logits_ith(context, place), (width,)) for place in last]
        return [int(row.argmax()) for row in logits]

    def run(prompts: Rows, steps: int) -> Run:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        return stepped(step, prompts, steps)

    return Peer(encode, run)


def transformers(path: Path, threads: int, rows: int) -> Peer:  # noqa: ARG001
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)

    def run(prompts: Rows, steps: int) -> Run:
        past: Any = None

        def step(tokens: Rows, position: int) -> list[int]:  # noqa: ARG001
            nonlocal past
            out = model(torch.tensor(tokens), past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            return [int(token) for token in out.logits[:, -1].argmax(-1)]

        with torch.inference_mode():
            return stepped(step, prompts, steps)

    return Peer(lambda text: list(tokenizer.encode(text).ids), run)


def ctranslate2(path: Path, threads: int, rows: int) -> Peer:  # noqa: ARG001
    import ctranslate2 as c
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    model = c.Generator(str(path), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads)

    def run(prompts: Rows, steps: int) -> Run:
        tokens, times = [], []

        def seen(result: Any) -> bool:  # called for each row of each step
            if result.batch_id == len(prompts) - 1:
                tokens.append(result.token_id)
                times.append(time.monotonic())
            return False

        names = [[tokenizer.id_to_token(token) for token in ids] for ids in prompts]
        exactly = {"max_length": steps + 1, "min_length": steps + 1}
        start = time.monotonic()
        model.generate_batch(names, **exactly, sampling_topk=1, include_prompt_in_result=False, callback=seen)
        return tokens, times[0] - start, times[steps] - times[0]

    return Peer(lambda text: list(tokenizer.encode(text).ids), run)


def zoo(path: Path, threads: int, rows: int, *, kernel: str) -> Peer:  # noqa: ARG001
    import torch

    from zoo.decoding.reading import prefill, step
    from zoo.models.build import ModelSpec
    from zoo.tasks.language_model import open_language_model

    torch.set_num_threads(threads)
    language = open_language_model(ModelSpec(name="smollm/135m-instruct.q4_1", kernel=kernel))

    def run(prompts: Rows, steps: int) -> Run:
        cache = language.decoder.new_cache(len(prompts), len(prompts[0]) + steps)

        def one(tokens: Rows, position: int) -> list[int]:
            if position == 0:
                logits = prefill(language.decoder, torch.tensor(tokens), cache)
            else:
                logits = step(language.decoder, torch.tensor([ids[0] for ids in tokens]), cache)
            return [int(token) for token in logits.argmax(-1)]

        with torch.inference_mode():
            return stepped(one, prompts, steps)

    return Peer(language.tokenizer.encode, run)


PEERS: dict[str, Callable[[Path, int, int], Peer]] = {"llama.cpp": llama_cpp, "ctranslate2": ctranslate2}
PEERS |= {f"zoo-{kernel}": partial(zoo, kernel=kernel) for kernel in ("float32", "bf16", "int8", "int4", "fused")}
PEERS |= dict.fromkeys(("transformers-fp32", "transformers-bf16"), transformers)


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


def prepared(peer: str, gguf: Path, cache: Path) -> Path:
    """What the peer loads; folders of the transformers peers are made now if they are not there yet."""
    folder, draft = cache / peer, cache / f"{peer}.draft"
    if peer.startswith("transformers") and not folder.exists():
        convert(gguf, draft, "bfloat16" if peer.endswith("bf16") else "float32")
        draft.rename(folder)
    return gguf if peer == "llama.cpp" or peer.startswith("zoo") else folder


def memory(field: str) -> float:
    """VmHWM or VmRSS of this process in MiB; getrusage would count what the parent had before exec."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024, 1)


def measure(peer: str, task: str, path: Path, threads: int, started: float) -> dict[str, Any]:
    """The task once, in this process, which was spawned at `started` of the system's monotonic clock."""
    rows, length, steps = ROWS[task], 512 if task == "prefill512" else 16, STEPS if task.startswith("decode") else 0
    model = PEERS[peer](path, threads, rows)
    if task == "first-token":
        tokens = model.run([model.encode(PROMPT)], 0)[0]
        seconds, count = time.monotonic() - started, 1
        if tokens != model.encode(ANSWER):
            raise RuntimeError(f"{peer} continues {PROMPT!r} with token {tokens}, not {ANSWER!r}")
    else:
        prompts = [[1000 + (7919 * (row * length + index)) % 40000 for index in range(length)] for row in range(rows)]
        model.run(prompts, steps)
        _, prompt_s, steps_s = model.run(prompts, steps)
        seconds, count = (steps_s, steps * rows) if steps else (prompt_s, length)
    result: dict[str, Any] = {"peer": peer, "task": task, "threads": threads, "seconds": round(seconds, 4)}
    result |= {"tokens": count, "tokens_per_s": round(count / seconds, 2)}
    return result | {"peak_rss_mib": memory("VmHWM"), "steady_rss_mib": memory("VmRSS")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--task", choices=ROWS, default="decode1")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "zoo-peers", help="folder of the converted weights"
    )
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)  # when the process that measures was spawned
    told = parser.parse_args(arguments)
    if told.started is not None:
        print(json.dumps(measure(told.peer, told.task, told.gguf, told.threads, told.started)), flush=True)
        return
    path, threads = str(prepared(told.peer, told.gguf, told.cache)), str(told.threads)
    command = [sys.executable, __file__, "--peer", told.peer, "--gguf", path, "--threads", threads, "--task", told.task]
    quiet = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    sys.exit(subprocess.run([*command, "--started", str(time.monotonic())], env=quiet, check=False).returncode)


if __name__ == "__main__":
    main()
