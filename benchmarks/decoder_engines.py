"""The decoder's peers: each is a function from a path, the number of threads and of rows to a loaded `Peer`.

llama.cpp is used through its C interface (what `llama_cpp` binds); eight rows are eight sequences in one llama_batch. transformers runs
the bare model in a loop on its own cache of keys and values, which is faster than `generate()`, from the class itself and
`tokenizers`, not the Auto classes. OpenVINO GenAI decodes by its paged-attention pipeline, one `step()` after another (LLMPipeline
runs the same), without the cache of prefixes, which would answer the second run of a prompt from the first; its logits are those of
plain OpenVINO on the same folder. ONNX Runtime GenAI and CTranslate2 are told the least length, so that the end token ends nothing.
"""

import itertools
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = list[list[int]]
Logits = NDArray[np.float32]


class Clock(NamedTuple):
    """Seconds of the wall and of all threads of this process."""

    wall: float
    cpu: float

    def since(self, start: "Clock") -> "Clock":
        return Clock(self.wall - start.wall, self.cpu - start.cpu)


Run = tuple[list[int], Clock, Clock]  # tokens of the last row, time up to the first and from there to the last


class Peer(NamedTuple):
    """A loaded model.

    encode: text to tokens. run: greedy decoding of prompts of equal length by so many steps after the first token.
    logits: float32[T, V] of a text of T tokens, read so many at a time. Raises RuntimeError for a number that the peer cannot read.
    """

    encode: Callable[[str], list[int]]
    run: Callable[[Rows, int], Run]
    logits: Callable[[list[int], int], Logits]


def now() -> Clock:
    return Clock(time.monotonic(), time.process_time())


def stepped(step: Callable[[Rows, int], list[int]], prompts: Rows, steps: int) -> Run:
    """Greedy decoding by a function from one more token of each row (or its prompt) and their position to the next of each."""
    start, row = now(), step(prompts, 0)
    middle, tokens = now(), [row[-1]]
    for position in range(len(prompts[0]), len(prompts[0]) + steps):
        row = step([[token] for token in row], position)
        tokens.append(row[-1])
    return tokens, middle.since(start), now().since(middle)


def chunked(read: Callable[[list[int], int], Logits], ids: list[int], size: int) -> Logits:
    """The logits of a text by a function from its next tokens and their position to their logits."""
    return np.concatenate([read(ids[at : at + size], at) for at in range(0, len(ids), size)])


def llama_cpp(path: Path, threads: int, rows: int) -> Peer:
    import llama_cpp as c

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    c.llama_backend_init()
    model = c.llama_model_load_from_file(os.fsencode(path), c.llama_model_default_params())
    options = c.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = max(1024, 256 * rows), 512, 512, rows
    options.n_threads = options.n_threads_batch = threads
    context, vocabulary = c.llama_init_from_model(model, options), c.llama_model_get_vocab(model)
    width, batch = c.llama_vocab_n_tokens(vocabulary), c.llama_batch_init(512, 0, 1)

    def encode(text: str) -> list[int]:
        raw = text.encode()
        ids = (c.llama_token * (len(raw) + 1))()
        return list(ids[: c.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), False, False)])

    def fed(tokens: Rows, position: int, *, every: bool) -> list[Logits]:
        asked: list[int] = []
        entries = [(row, index, token) for row, ids in enumerate(tokens) for index, token in enumerate(ids)]
        for place, (row, index, token) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, position + index
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            batch.logits[place] = every or index == len(tokens[row]) - 1
            asked += [place] if batch.logits[place] else []
        batch.n_tokens = len(entries)
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        return [np.ctypeslib.as_array(c.llama_get_logits_ith(context, place), (width,)) for place in asked]

    def step(tokens: Rows, position: int) -> list[int]:
        return [int(row.argmax()) for row in fed(tokens, position, every=False)]

    def run(prompts: Rows, steps: int) -> Run:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        return stepped(step, prompts, steps)

    def logits(ids: list[int], size: int) -> Logits:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        return chunked(lambda some, at: np.stack(fed([some], at, every=True)), ids, size)

    return Peer(encode, run, logits)


def transformers(path: Path, threads: int, rows: int) -> Peer:  # noqa: ARG001
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)

    def reader(keep: int) -> Callable[[Rows], Any]:
        past: Any = None

        def read(tokens: Rows) -> Any:
            nonlocal past
            out = model(torch.tensor(tokens), past_key_values=past, use_cache=True, logits_to_keep=keep)
            past = out.past_key_values
            return out.logits

        return read

    def run(prompts: Rows, steps: int) -> Run:
        read = reader(1)
        with torch.inference_mode():
            return stepped(lambda tokens, _: [int(token) for token in read(tokens)[:, -1].argmax(-1)], prompts, steps)

    def logits(ids: list[int], size: int) -> Logits:
        read = reader(0)
        with torch.inference_mode():
            return chunked(lambda some, _: read([some])[0].float().numpy(), ids, size)

    return Peer(lambda text: list(tokenizer.encode(text).ids), run, logits)


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
                times.append(now())
            return False

        names = [[tokenizer.id_to_token(token) for token in ids] for ids in prompts]
        exactly = {"max_length": steps + 1, "min_length": steps + 1}
        start = now()
        model.generate_batch(names, **exactly, sampling_topk=1, include_prompt_in_result=False, callback=seen)
        return tokens, times[0].since(start), times[steps].since(times[0])

    def logits(ids: list[int], size: int) -> Logits:
        if size < len(ids):
            raise RuntimeError("ctranslate2 gives the logits of a whole text alone")
        return np.array(model.forward_batch([ids]))[0]

    return Peer(lambda text: list(tokenizer.encode(text).ids), run, logits)


def openvino(path: Path, threads: int, rows: int) -> Peer:  # noqa: ARG001
    import openvino_genai as c
    from openvino import Core, Tensor

    plan = c.SchedulerConfig()
    plan.max_num_batched_tokens, plan.enable_prefix_caching = 4096, False
    count = {"INFERENCE_NUM_THREADS": threads}
    pipeline = c.ContinuousBatchingPipeline(str(path), plan, "CPU", count)
    tokenizer, numbers = pipeline.get_tokenizer(), itertools.count()

    def run(prompts: Rows, steps: int) -> Run:
        exactly = c.GenerationConfig(max_new_tokens=steps + 1, ignore_eos=True, do_sample=False)
        start = now()
        asked = [pipeline.add_request(next(numbers), Tensor(np.array([ids], np.int64)), exactly) for ids in prompts]
        pipeline.step()
        middle = now()
        for _ in range(steps):
            pipeline.step()
        end = now()
        tokens = list(asked[-1].read_all()[0].generated_ids)
        if len(tokens) != steps + 1:
            raise RuntimeError(f"OpenVINO GenAI gave {len(tokens)} tokens in {steps + 1} steps")
        return tokens, middle.since(start), end.since(middle)

    def logits(ids: list[int], size: int) -> Logits:
        request = Core().compile_model(path / "openvino_model.xml", "CPU", count).create_infer_request()

        def read(some: list[int], at: int) -> Logits:
            inputs = {"input_ids": [some], "attention_mask": [[1] * (at + len(some))]}
            inputs["position_ids"] = [list(range(at, at + len(some)))]
            given = {name: np.array(value, np.int64) for name, value in inputs.items()}
            found: Logits = request.infer(given | {"beam_idx": np.zeros(1, np.int32)})["logits"][0].copy()
            return found

        return chunked(read, ids, size)

    return Peer(lambda text: [int(token) for token in tokenizer.encode(text).input_ids.data[0]], run, logits)


def ortgenai(path: Path, threads: int, rows: int) -> Peer:  # noqa: ARG001
    import onnxruntime_genai as c

    config = c.Config(str(path))
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
    model = c.Model(config)
    tokenizer = c.Tokenizer(model)

    def generator(batch: int, length: int) -> Any:
        options = c.GeneratorParams(model)
        options.set_search_options(batch_size=batch, max_length=length, min_length=length, do_sample=False)
        return c.Generator(model, options)

    def run(prompts: Rows, steps: int) -> Run:
        start, decoding = now(), generator(len(prompts), len(prompts[0]) + steps + 1)
        decoding.append_tokens(np.array(prompts, np.int32))
        decoding.generate_next_token()
        middle = now()
        for _ in range(steps):
            decoding.generate_next_token()
        end = now()
        tokens = [int(token) for token in decoding.get_sequence(len(prompts) - 1)[len(prompts[0]) :]]
        return tokens, middle.since(start), end.since(middle)

    def logits(ids: list[int], size: int) -> Logits:
        decoding = generator(1, len(ids) + 1)

        def read(some: list[int], at: int) -> Logits:  # noqa: ARG001
            decoding.append_tokens(np.array(some, np.int32))
            found: Logits = decoding.get_output("logits")[0].copy()
            return found

        return chunked(read, ids, size)

    return Peer(lambda text: [int(token) for token in tokenizer.encode(text)], run, logits)


def zoo(path: Path, threads: int, rows: int, *, kernel: str) -> Peer:  # noqa: ARG001
    import torch

    from zoo.decoding.reading import prefill, step
    from zoo.models.build import ModelSpec
    from zoo.tasks.language_model import open_language_model

    torch.set_num_threads(threads)
    language = open_language_model(ModelSpec(name="smollm/135m-instruct.q4_1", kernel=kernel))
    decoder: Any = language.decoder

    def read(tokens: Rows, position: int, cache: Any) -> Any:
        if position == 0:
            return prefill(decoder, torch.tensor(tokens), cache)
        return step(decoder, torch.tensor([ids[0] for ids in tokens]), cache)

    def run(prompts: Rows, steps: int) -> Run:
        cache = decoder.new_cache(len(prompts), len(prompts[0]) + steps)
        with torch.inference_mode():
            return stepped(lambda tokens, at: [int(token) for token in read(tokens, at, cache).argmax(-1)], prompts, steps)

    def logits(ids: list[int], size: int) -> Logits:
        cache = decoder.new_cache(1, len(ids))
        with torch.inference_mode():
            if size == 1:
                return chunked(lambda some, at: read([some], at, cache).numpy(), ids, size)
            return chunked(lambda some, _: decoder(torch.tensor([some]), cache=cache)[0].float().numpy(), ids, size)

    return Peer(language.tokenizer.encode, run, logits)


ZOO = tuple(f"zoo-{kernel}" for kernel in ("float32", "bf16", "int8", "int4", "fused"))
TRANSFORMERS = ("transformers-fp32", "transformers-bf16")
PYTHON_PEERS = ("llama.cpp-q4_1", "llama.cpp-q8_0", "llama.cpp-q4_0", "ctranslate2-int8")
OPENVINO = ("openvino-q4_1", "openvino-q8_0", "openvino-q4_0")
ORT = ("ortgenai-int4", "ortgenai-int8")
ENGINES = {
    "transformers": transformers,
    "llama.cpp": llama_cpp,
    "ctranslate2": ctranslate2,
    "openvino": openvino,
    "ortgenai": ortgenai,
}
PEERS: dict[str, Callable[[Path, int, int], Peer]] = {name: partial(zoo, kernel=name.removeprefix("zoo-")) for name in ZOO}
PEERS |= {name: ENGINES[name.partition("-")[0]] for name in (*TRANSFORMERS, *PYTHON_PEERS, *OPENVINO, *ORT)}
