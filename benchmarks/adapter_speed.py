"""Adapters on SmolLM2-135M-Instruct, side by side with HF PEFT on the same weights and the same LoRA numbers.

    python benchmarks/adapter_speed.py [--runs 12] [--steps 16] [--threads 2]

Needs transformers and peft beside zoo with its plugins smollm and adapters, and the weights (zoo fetch smollm/135m-instruct). All is in one
process; the rows of a table take turns, and the median of the ratios of one round counts, with the least and the greatest.

    `zoo, base again` is the base once more, a model of its own: how far from 1 a ratio lies that means nothing.

    batch    8 prompts of 16 tokens, each with a LoRA of its own on queries and values; 16 greedy steps, timed without reading the prompts
    train    8 rows of 64 tokens, forward, backward and AdamW of one LoRA; each in a process of its own for its memory: "tokens" counts all,
             "completions" the last 16 of each row, by `completion_loss` here and by labels of -100 before them there

`zoo, base` and all rows of ours run by the kernel float32, which rounds nothing, but for training, which runs on the plain layers. The file holds
the weights in 4 bits: `int4` multiplies exactly those, inputs rounded to bfloat16; `int8` rounds them again. PEFT runs in float32,
as its documentation says: `adapter_names` for rows, `set_adapter` and one row at a time for one by one, in a bare loop over
its model with the cache of transformers, which is faster than `generate`.

Expected before measuring: 8 adapters at 0.85x of the base or better, 3x PEFT's `adapter_names`, 5x one by one; 1,000 registered adapters as
fast as 8; merged as fast as the base; a step of training at 1.2x PEFT's, on completions 1.4x: the head is a fifth of the products.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine, progress, show

import zoo
from zoo.adapters.adapt import Adapters, adapters_of
from zoo.adapters.adapted import choice_for
from zoo.decoding.prefix_cache import read_prompts
from zoo.decoding.prompt import Prompt
from zoo.decoding.reading import step
from zoo.models.kernels import apply_kernel
from zoo.training.losses import Completion, completion_loss

MODEL = "smollm/135m-instruct"
ROWS, PROMPT, RANK, MIXED = 8, 16, 8, (2, 4, 8, 16, 4, 8, 16, 2)
TRAIN_TOKENS, TRAIN_PROMPT, TRAIN_STEPS = 64, 48, 6


def transformers_model() -> Any:
    """LlamaForCausalLM with our weights under its names."""
    from transformers import LlamaConfig, LlamaForCausalLM

    built = zoo.open_model(MODEL)
    names = built.found.card.module_names
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    from zoo.adapters.peft import their_name

    more = {"stack.blocks.*.attention_norm": "model.layers.*.input_layernorm", "stack.norm": "model.norm",
            "stack.blocks.*.feed_forward_norm": "model.layers.*.post_attention_layernorm"}  # fmt: skip
    table = {**names, **more}
    state = {}
    for key, tensor in built.module.state_dict().items():
        module, _, name = key.rpartition(".")
        state[f"{their_name(module, table)}.{name}"] = tensor
    model = LlamaForCausalLM(config)
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    return model.eval()


def fill(adapters: Adapters, name: str, seed: int) -> None:
    """Numbers as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters[name].parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 49000, (PROMPT,), generator=generator).tolist() for _ in range(ROWS)]


def ours(model: Any, names: list[str | None] | None, steps: int) -> Callable[[], float]:
    """Seconds of the steps, the prompts read before."""

    def run() -> float:
        choice = choice_for(model, names, ROWS)
        with torch.inference_mode():
            logits, cache = read_prompts(model, [Prompt(tuple(row)) for row in prompts()], room=steps + 1, choice=choice)
            tokens = logits.argmax(-1)
            started = time.perf_counter()
            for _ in range(steps):
                tokens = step(model, tokens, cache).argmax(-1)
            return time.perf_counter() - started

    return run


def theirs(model: Any, names: list[str] | None, steps: int) -> Callable[[], float]:
    """The same by transformers and PEFT; names: for each row."""
    extra = {"adapter_names": names} if names else {}

    def run() -> float:
        with torch.inference_mode():
            found = model(input_ids=torch.tensor(prompts()), use_cache=True, logits_to_keep=1, **extra)
            tokens, cache = found.logits[:, -1].argmax(-1), found.past_key_values
            started = time.perf_counter()
            for _ in range(steps):
                found = model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True, **extra)
                tokens, cache = found.logits[:, -1].argmax(-1), found.past_key_values
            return time.perf_counter() - started

    return run


def one_by_one(model: Any, names: list[str], steps: int) -> Callable[[], float]:
    """Each row by itself, its adapter set before."""

    def run() -> float:
        total = 0.0
        with torch.inference_mode():
            for name, row in zip(names, prompts(), strict=True):
                model.set_adapter(name)
                found = model(input_ids=torch.tensor([row]), use_cache=True, logits_to_keep=1)
                tokens, cache = found.logits[:, -1].argmax(-1), found.past_key_values
                started = time.perf_counter()
                for _ in range(steps):
                    found = model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
                    tokens, cache = found.logits[:, -1].argmax(-1), found.past_key_values
                total += time.perf_counter() - started
        return total

    return run


def batch(options: argparse.Namespace) -> None:
    import peft

    names = [f"a{number}" for number in range(ROWS)]
    mixed = [f"m{number}" for number in range(ROWS)]
    base = apply_kernel(zoo.build(MODEL), "float32")
    again = apply_kernel(zoo.build(MODEL), "float32")
    few = apply_kernel(zoo.build(MODEL), "float32")
    adapters = adapters_of(few)
    for number, (name, other) in enumerate(zip(names, mixed, strict=True)):
        adapters.add("lora", name=name, r=RANK, activate=False)
        fill(adapters, name, number)
        adapters.add("lora", name=other, r=MIXED[number], activate=False)
        fill(adapters, other, number)
    rounded = {}
    for kernel in ("int8", "int4"):
        rounded[kernel] = apply_kernel(zoo.build(MODEL), kernel)
        own = adapters_of(rounded[kernel])
        for number, name in enumerate(names):
            own.add("lora", name=name, r=RANK, activate=False)
            fill(own, name, number)
    many = apply_kernel(zoo.build(MODEL), "float32")
    crowd = adapters_of(many)
    for number in range(1000):
        crowd.add("lora", name=f"a{number}", r=RANK, activate=False)
        fill(crowd, f"a{number}", number)
    plain = zoo.build(MODEL)
    merging = adapters_of(plain)
    merging.add("lora", name="a0", r=RANK)
    fill(merging, "a0", 0)
    merging.merge()
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    merging.unmerge()
    merging.close()
    merged: Any = zoo.build(MODEL)
    merged.load_state_dict(state)
    apply_kernel(merged, "float32")
    model = peft.get_peft_model(
        transformers_model(), peft.LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"), "a0"
    )
    for name in names[1:]:
        model.add_adapter(name, peft.LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model.eval()
    rows: dict[str, Callable[[], float]] = {
        "zoo, base": ours(base, None, options.steps),
        "zoo, base again": ours(again, None, options.steps),
        "zoo, 8 LoRA of rank 8": ours(few, names, options.steps),
        "zoo, 8 LoRA of ranks 2-16": ours(few, mixed, options.steps),
        "zoo, 8 of 1,000 registered": ours(many, names, options.steps),
        "zoo, one LoRA for all rows": ours(few, ["a0"] * ROWS, options.steps),
        "zoo, one LoRA merged": ours(merged, None, options.steps),
        "zoo int8, 8 LoRA of rank 8": ours(rounded["int8"], names, options.steps),
        "zoo int4, 8 LoRA of rank 8": ours(rounded["int4"], names, options.steps),
        "PEFT, adapter_names": theirs(model, names, options.steps),
        "PEFT, one by one": one_by_one(model, names, options.steps),
    }
    seconds = turns(rows, options.runs)
    show(f"\n{ROWS} rows, {options.steps} steps, {options.threads} threads, median (least to greatest) of {options.runs}")
    report(seconds, "zoo, base", "PEFT, adapter_names")


def turns(rows: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Seconds of each row, in turns, after one of each that does not count."""
    for run in rows.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    names = list(rows)
    for number in range(runs):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):  # none is always the one after the same
            seconds[name].append(rows[name]())
        progress(
            f"round {number + 1} of {runs}: " + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        )
    return seconds


def report(seconds: dict[str, list[float]], *others: str) -> None:
    for name, times in seconds.items():
        cells = []
        for other in others:
            ratios = [theirs / own for own, theirs in zip(times, seconds[other], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) as fast as {other}")
        show(f"  {name:<28} {statistics.median(times):6.2f} s   {'   '.join(cells)}")


def peak_mib() -> float:
    """Of the memory of this process so far; `getrusage` would count what it was forked from."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def train_once(who: str, counted: str) -> None:
    """Steps of training in this process; prints seconds of each step and the peak of memory."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 49000, (ROWS, TRAIN_TOKENS), generator=generator)
    pairs = [Completion(tuple(row[:TRAIN_PROMPT]), tuple(row[TRAIN_PROMPT:])) for row in tokens.tolist()]
    if who == "zoo":
        model: Any = zoo.build(MODEL)
        adapters = zoo.adapt(model, "lora", r=RANK)
        parameters = adapters.parameters()
        of_completions = completion_loss(model)

        def loss() -> torch.Tensor:
            if counted == "completions":
                return of_completions(pairs)
            logits = model(tokens[:, :-1])
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    else:
        import peft

        model = peft.get_peft_model(
            transformers_model(), peft.LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
        parameters = [one for one in model.parameters() if one.requires_grad]
        labels = tokens.clone()
        if counted == "completions":
            labels[:, :TRAIN_PROMPT] = -100

        def loss() -> torch.Tensor:
            return model(input_ids=tokens, labels=labels, use_cache=False).loss

    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    loaded = peak_mib()
    seconds = []
    first = None
    for _ in range(TRAIN_STEPS):
        started = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        value = loss()
        first = float(value.detach()) if first is None else first
        value.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - started)
    peak = peak_mib()
    found = {"seconds": statistics.median(seconds[1:]), "loss": first, "peak_mib": peak, "grows_mib": peak - loaded}
    show(json.dumps(found))


def train(options: argparse.Namespace, counted: str) -> None:
    rows: dict[str, list[dict[str, float]]] = {"zoo": [], "PEFT": []}
    for number in range(max(1, options.runs // 3)):
        for who, found in rows.items():
            command = [sys.executable, str(Path(__file__)), "--train-once", who, counted, "--threads", str(options.threads)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(run.stdout.splitlines()[-1]))
        progress(f"train {number + 1}: " + ", ".join(f"{who} {found[-1]['seconds']:.2f} s" for who, found in rows.items()))
    show(
        f"\none step of training on {counted}, {ROWS} rows of {TRAIN_TOKENS} tokens, LoRA of rank {RANK}, median of {len(rows['PEFT'])}"
    )
    for who, found in rows.items():
        ratios = [theirs["seconds"] / own["seconds"] for own, theirs in zip(found, rows["PEFT"], strict=True)]
        show(
            f"  {who:<28} {statistics.median(one['seconds'] for one in found):6.2f} s   "
            f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) as fast as PEFT   loss {found[-1]['loss']:.4f}   "
            f"peak {statistics.median(one['peak_mib'] for one in found):.0f} MiB, grows {statistics.median(one['grows_mib'] for one in found):.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train-once", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.train_once:
        train_once(*options.train_once)
        return
    show(machine())
    for counted in ("tokens", "completions"):  # first, while this process is small
        train(options, counted)
    batch(options)


if __name__ == "__main__":
    main()
