"""Media in a decoder, ours and open_flamingo's own code side by side: the same shapes, the same random weights, float32.

    python benchmarks/fusion_speed.py [--threads 2 1] [--runs 3]

The peer is OpenFlamingo 2.0.1 around a transformers Llama (`fusion_peer.py`: how it runs here, and what its caching does), by its
`generate()`, and by hand with its `cache_media()` for the second question. Ours is the same decoder, resampler and gated layers, with
the peer's weights; first it is checked that logits, answers, loss and gradients are the same. Both begin at features of 257 tokens,
1024 wide (CLIP ViT-L/14), that are given: no vision encoder runs. The decoder has the shape of SmolLM2-135M.

All is measured in one process, the sides taking turns, medians of `--runs`; a turn during which others were at work is taken again.
Only the memory of training, a peak, has a process of its own for each side: what a first step adds to what was there before it.

  token     time from one token of an answer to the next, greedy, 32 tokens after a prompt with 0, 4, 16 or 32 images and about 16 tokens
            of text for each. The peer cannot run without an image: for 0 it has one that no token sees. "decoder alone" is our decoder
            on the same ids without senses: what a longer prompt costs through self-attention is in it.
  question  a second question of 12 tokens about the same 16 images, from the call to the whole answer of 1 token and of 8 tokens; ours
            with the `PrefixCache` of the first question. Then the same with a new image in the question, which nobody has seen.
  training  forward and backward through frozen decoder, gated layers and resampler: 4 rows of 256 tokens with 5 images each.

"plain" is the model as `zoo.compose` gives it, "packed" has the kernel float32 in its decoder (`zoo.nn.kernels.apply`: laid out for oneDNN,
nothing rounded), "all packed" in its gated layers, too. At 16 images both sides are measured in rounded numbers, too, the peer in
bfloat16 and ours by the kernels bf16 and int4, gated layers included; there only times are compared.

Expected before measuring: 5x a token at 16 images (the peer projects 1,024 latents to keys and values in 7 layers for each token, 19
GFLOP, about 0.1 s, beside some 65 ms for the rest; ours needs about 36 ms), 2x at 0, 7x at 32, and ours growing by what the decoder
alone grows by, within 10 %. 30x for the answer of 1 token to the second question, 8x for that of 8, where the tokens count and not the
beginning; against `cache_media()` 3x. Training 1.15x, short of the 1.5x that was aimed at: nearly all of it is the same products, and
both sides ask the same library for them; memory 1.2x less.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from fusion_peer import WHEEL, Conversation, Shape, answer, flamingo, pictures, training_step
from machine import machine, progress, show
from torch import nn
from torch.nn.functional import cross_entropy, pad
from zoo_lm import llama
from zoo_perceiver.open_flamingo import from_checkpoint
from zoo_perceiver.resampler import resampler

from zoo.decoding.generation import stream
from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.prompt import Prompt
from zoo.models.composition_parts import gated_layer
from zoo.models.encoded import Encoded
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import Item, Placed
from zoo.models.fusion.sense import Sense
from zoo.models.kernels import apply_kernel
from zoo.weights.strict_load import load_strict

SHAPE = Shape()
FEATURES = 257  # tokens of an image
TEXTS = (16, 11, 21, 14, 18)  # tokens of text after each image, in turn
TOKENS, QUESTION = 32, 12
IMAGES, SHOTS = (0, 4, 16, 32), 16
ROWS, TRAINED_IMAGES, LENGTH = 4, 5, 256
MOST = 40  # attempts at measuring while nobody else works
State = dict[str, torch.Tensor]


def below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def language_state(state: State) -> State:
    """The decoder of a Flamingo under the names of transformers, its layers out of their wrapping."""
    kept = below(state, "lang_encoder.")
    layers = {f"model.layers.{name}": tensor for name, tensor in below(kept, "old_decoder_blocks.").items()}
    plain = {
        name: tensor for name, tensor in kept.items() if name.startswith(("model.embed_tokens", "model.norm", "lm_head"))
    }
    return {**layers, **plain}


def added(state: State) -> State:
    """The resampler and the gated layers of a Flamingo."""
    return {name: tensor for name, tensor in state.items() if name.startswith(("perceiver.", "lang_encoder.gated_cross"))}


def decoder(state: State | None) -> Any:
    names = ("layers", "width", "heads", "kv_heads", "hidden", "vocabulary", "context", "theta", "epsilon")
    module = llama.build(**{name: getattr(SHAPE, name) for name in names}, tied=True)
    if state is not None:
        load_strict(module, llama.from_transformers(language_state(state)), "the peer")
    return module.requires_grad_(False).eval()


def sense(state: State | None) -> Sense:
    bridge = resampler(input_width=SHAPE.feature_width)
    layers = {
        layer: gated_layer(
            SHAPE.width, SHAPE.feature_width, heads=8, head_width=64, hidden_factor=4, gate=SHAPE.gate, feeds_all=True
        )
        for layer in range(SHAPE.every - 1, SHAPE.layers, SHAPE.every)
    }
    made = Sense(encoder=None, bridge=bridge, layers=layers, marker="<image>").eval()
    if state is not None:
        load_strict(nn.ModuleDict({"bridge": made.bridge, "gated": made.gated}), from_checkpoint(added(state)), "the peer")
    return made


def features(images: int, rows: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, images, FEATURES, SHAPE.feature_width, generator=generator)


def words(count: int, start: int) -> list[int]:
    return [1000 + (7919 * (start + step)) % 40000 for step in range(count)]


def shots(images: int) -> list[int]:
    """A marker and some text for each image; without images the text of one."""
    ids: list[int] = [] if images else words(TEXTS[0], 0)
    for number in range(images):
        ids += [SHAPE.marker, *words(TEXTS[number % len(TEXTS)], 100 * number)]
    return ids


def placed(ids: Sequence[int], features_NVD: torch.Tensor, name: str) -> tuple[Placed, ...]:
    """The images of a row at its markers."""
    at = [place for place, token in enumerate(ids) if token == SHAPE.marker]
    return tuple(
        Placed(position, 1, Item("image", (), f"{name} {number}", _encoded(features_NVD[number])))
        for number, position in enumerate(at)
    )


def _encoded(features_VD: torch.Tensor) -> Encoded:
    return Encoded(features_VD[None], torch.ones(1, len(features_VD), dtype=torch.bool), features_VD.mean(0, keepdim=True))


def ours(model: Any, prompt: Prompt, tokens: int, prefixes: PrefixCache | None = None) -> tuple[list[int], list[float]]:
    """A greedy answer of exactly so many tokens: (the tokens, when each was there)."""
    found, times = [], []
    for piece in stream(model, [prompt], max_tokens=tokens, prefixes=prefixes):
        found.append(int(piece.token or 0))
        times.append(time.perf_counter())
    return found, times


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, tokens and labels of a training step; each row has its images elsewhere, and a marker is not learnt."""
    tokens_BT = torch.tensor([words(LENGTH, 1000 * row) for row in range(ROWS)])
    generator = torch.Generator().manual_seed(2)
    for row in range(ROWS):
        tokens_BT[row, torch.randperm(LENGTH - 8, generator=generator)[:TRAINED_IMAGES].sort().values] = SHAPE.marker
    return features(TRAINED_IMAGES, ROWS), tokens_BT, tokens_BT.masked_fill(tokens_BT == SHAPE.marker, -100)


def our_step(model: Any, features_BNVD: torch.Tensor, tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> float:
    model.zero_grad(set_to_none=True)
    media = [placed(tokens_BT[row].tolist(), features_BNVD[row], f"row {row}") for row in range(ROWS)]
    logits_BTV = model(tokens_BT, media=media)
    loss = cross_entropy(logits_BTV.flatten(0, 1), pad(labels_BT, (0, 1), value=-100)[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    return float(loss.detach())


class Sides:
    """Both models with the same weights."""

    def __init__(self) -> None:
        self.peer = flamingo(SHAPE)
        state = {name: tensor.detach() for name, tensor in self.peer.state_dict().items()}
        image = sense(state)
        self.plain = Fused(decoder(state), {"image": image})
        self.packed = Fused(apply_kernel(decoder(state), "float32"), {"image": image})
        image = sense(state)
        apply_kernel(image.gated, "float32")
        self.whole = Fused(self.packed.decoder, {"image": image})

    def agree(self) -> None:
        """Raises RuntimeError unless both say the same."""
        features_1NVD, ids = features(4), [*words(5, 7), *shots(4)]
        with torch.inference_mode():
            theirs = self.peer(pictures(features_1NVD), torch.tensor([ids])).logits
            for name in ("plain", "packed", "whole"):
                mine = getattr(self, name)(torch.tensor([ids]), media=[placed(ids, features_1NVD[0], "agree")])
                _require(f"logits, {name}", float((mine - theirs).abs().max()), 1e-4)
            blind = self.plain(torch.tensor([ids]), media=[placed(ids, features_1NVD[0] * 0, "nothing")])
        if float((blind - theirs).abs().max()) < 0.01:
            raise RuntimeError("the images change nothing: nothing is compared")
        whole = batch()
        losses = training_step(self.peer, *whole), our_step(self.plain, *whole)
        _require("loss", abs(losses[0] - losses[1]), 1e-4)
        gradients = {
            name: one.grad for name, one in self.peer.named_parameters(remove_duplicate=False) if one.grad is not None
        }
        own: dict[str, Any] = {name: one.grad for name, one in self.plain.senses["image"].named_parameters()}
        expected = from_checkpoint(added(gradients))
        if expected.keys() != own.keys():
            raise RuntimeError("not the same parameters have gradients")
        greatest = max(float(one.abs().max()) for one in expected.values())
        _require("gradients", max(float((own[name] - one).abs().max()) for name, one in expected.items()) / greatest, 1e-4)
        self.peer.zero_grad(set_to_none=True)
        self.plain.zero_grad(set_to_none=True)


def _require(what: str, difference: float, limit: float) -> None:
    show(f"  {what:<16} differ by {difference:.1e} at most")
    if not difference < limit:
        raise RuntimeError(f"{what} differ by {difference}, more than {limit}")


def turns(runs: int, sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """One side after the other, and again. All is warm: `Sides.agree` ran it."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            found[name].append(undisturbed(side))
    return found


def undisturbed(side: Callable[[], float]) -> float:
    """What was measured while others took less than a tenth of one core; after MOST attempts the last is taken as it is."""
    for attempt in range(MOST):
        busy, own, start = _busy(), time.process_time(), time.perf_counter()
        value = side()
        others = (_busy() - busy - time.process_time() + own) / (time.perf_counter() - start)
        if others < 0.1:
            break
        progress(f"  again: others took {others:.2f} cores")
        time.sleep(min(attempt, 10))
    return value


def _busy() -> float:
    """Seconds that all cores have worked since the machine began, those that its host took away among them."""
    ticks = [int(one) for one in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def token_times(sides: Sides, images: int, runs: int) -> dict[str, list[float]]:
    features_1NVD, ids = features(max(images, 1)), [*shots(images), *words(8, 5)]
    prompt = Prompt(tuple(ids), placed(ids, features_1NVD[0], "token"))
    said: dict[str, list[int]] = {}

    def peer() -> float:
        said["open_flamingo"], times = answer(sides.peer, features_1NVD, ids, TOKENS, time.perf_counter)
        return _between(times)

    def mine(name: str) -> float:
        said[name], times = ours(getattr(sides, name), prompt, TOKENS)
        return _between(times)

    def alone() -> float:
        return _between(ours(sides.packed.decoder, Prompt(tuple(ids)), TOKENS)[1])

    found = turns(
        runs,
        {
            "open_flamingo": peer,
            "zoo, all packed": lambda: mine("whole"),
            "zoo, packed": lambda: mine("packed"),
            "zoo, plain": lambda: mine("plain"),
            "decoder alone": alone,
        },
    )
    _same(said)
    return found


def format_times(sides: Sides, images: int, runs: int) -> dict[str, list[float]]:
    """A token as in `token_times`, where the numbers are rounded: the whole peer to bfloat16, our decoder and gated layers by a kernel."""
    features_1NVD, ids = features(images), [*shots(images), *words(8, 5)]
    prompt = Prompt(tuple(ids), placed(ids, features_1NVD[0], "token"))
    state = {name: tensor.detach() for name, tensor in sides.peer.state_dict().items()}

    def rounded(kernel: str) -> Fused:
        image = sense(state)
        apply_kernel(image.gated, kernel)
        return Fused(apply_kernel(decoder(state), kernel), {"image": image})

    peer = deepcopy(sides.peer).bfloat16()
    models = {f"zoo, {kernel}": rounded(kernel) for kernel in ("bf16", "int4")}

    def theirs() -> float:
        return _between(answer(peer, features_1NVD.bfloat16(), ids, TOKENS, time.perf_counter)[1])

    def mine(model: Fused) -> Callable[[], float]:
        return lambda: _between(ours(model, prompt, TOKENS)[1])

    return turns(runs, {"open_flamingo": theirs, **{name: mine(model) for name, model in models.items()}})


def _between(times: list[float]) -> float:
    if len(times) != TOKENS:
        raise RuntimeError(f"an answer has {len(times)} tokens, not {TOKENS}")
    return (times[-1] - times[0]) / (TOKENS - 1)


def _same(said: dict[str, list[int]]) -> None:
    if len({tuple(tokens) for tokens in said.values()}) > 1:
        raise RuntimeError(f"the answers differ: {said}")


def question_times(sides: Sides, tokens: int, runs: int, *, image: bool) -> dict[str, list[float]]:
    """image: whether the second question comes with one of its own."""
    features_1NVD, ids = features(SHOTS), shots(SHOTS)
    numbers = iter(range(10_000))
    said: dict[str, list[int]] = {}
    turn = {"asked": 0}

    def question() -> tuple[list[int], torch.Tensor]:
        """The same for each side in a round, another in the next; the image too."""
        number = turn["asked"]
        own = [SHAPE.marker] if image else []
        new_1NVD = features(1, seed=100 + number) if image else features(0)
        return [*ids, *own, *words(QUESTION, 300 + 40 * number)], torch.cat([features_1NVD, new_1NVD], 1)

    def peer() -> float:
        turn["asked"] = next(numbers)
        whole, features_1MVD = question()
        start = time.perf_counter()
        said["open_flamingo"], _ = answer(sides.peer, features_1MVD, whole, tokens, time.perf_counter)
        return time.perf_counter() - start

    def by_hand() -> float:
        whole, _ = question()
        conversation = Conversation(sides.peer, features_1NVD, ids)
        conversation.answer(words(QUESTION, 5), 1)
        start = time.perf_counter()
        said["cache_media"] = conversation.answer(whole[len(ids) :], tokens)
        seconds = time.perf_counter() - start
        conversation.close()
        return seconds

    def mine(name: str) -> float:
        whole, features_1MVD = question()
        model, prefixes = getattr(sides, name), PrefixCache()
        first = [*ids, *words(QUESTION, 5)]
        ours(model, Prompt(tuple(first), placed(first, features_1NVD[0], "shot")), 1, prefixes)
        prompt = Prompt(tuple(whole), placed(whole, features_1MVD[0], "shot"))
        start = time.perf_counter()
        said[name], _ = ours(model, prompt, tokens, prefixes)
        seconds = time.perf_counter() - start
        _same(said)
        if not prefixes.hits:
            raise RuntimeError("the shots were read again")
        return seconds

    asked: dict[str, Callable[[], float]] = {"open_flamingo": peer}
    if not image:
        asked["open_flamingo, cache_media()"] = by_hand
    return turns(
        runs,
        {
            **asked,
            "zoo, all packed": lambda: mine("whole"),
            "zoo, packed": lambda: mine("packed"),
            "zoo, plain": lambda: mine("plain"),
        },
    )


def training_times(sides: Sides, runs: int) -> dict[str, list[float]]:
    whole = batch()

    def timed(step: Callable[..., float], model: Any) -> float:
        start = time.perf_counter()
        step(model, *whole)
        seconds = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return seconds

    return turns(
        runs, {"open_flamingo": lambda: timed(training_step, sides.peer), "zoo": lambda: timed(our_step, sides.plain)}
    )


def memory(side: str) -> tuple[float, float]:
    """(MiB of this process before its first training step, what that adds at its peak)."""
    whole = batch()
    model: Any = flamingo(SHAPE) if side == "open_flamingo" else Fused(decoder(None), {"image": sense(None)})
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status("VmRSS")
    (training_step if side == "open_flamingo" else our_step)(model, *whole)
    return before, _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memories(threads: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for side in ("open_flamingo", "zoo"):
        command = [sys.executable, __file__, "--memory-of", side, "--threads", str(threads)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[side] = json.loads(run.stdout.splitlines()[-1])
    return found


def table(words_of: str, found: dict[str, list[float]], unit: str, factor: float) -> dict[str, float]:
    """Medians of one measurement, least and most beside them, each as a ratio to the peer's."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    peer = medians["open_flamingo"]
    show(f"\n{words_of}")
    for name, value in medians.items():
        least, most = min(found[name]) * factor, max(found[name]) * factor
        show(f"  {name:<30} {value * factor:>9.1f} {unit}   ({least:.1f} to {most:.1f})   {peer / value:>6.2f}x")
    return medians


def measure(sides: Sides, threads: int, runs: int) -> None:
    torch.set_num_threads(threads)
    of = f"{threads} thread{'s' if threads > 1 else ''}, median of {runs}"
    medians = {}
    for images in IMAGES:
        length = len(shots(images)) + 8
        medians[images] = table(
            f"a token after {images} images and {length} tokens, {of}", token_times(sides, images, runs), "ms", 1e3
        )
        progress(f"{threads} threads: {images} images")
    table(f"a token after {SHOTS} images, open_flamingo in bfloat16, {of}", format_times(sides, SHOTS, runs), "ms", 1e3)
    show(f"\nfrom {IMAGES[1]} to {IMAGES[-1]} images a token takes longer by, {of}")
    for name in medians[IMAGES[1]]:
        show(f"  {name:<30} {(medians[IMAGES[-1]][name] - medians[IMAGES[1]][name]) * 1e3:>9.1f} ms")
    for image in (False, True):
        for tokens in (1, 8):
            told = f"a second question{' with an image of its own' if image else ''}, {SHOTS} images before it, answer of {tokens}"
            table(f"{told}, {of}", question_times(sides, tokens, runs, image=image), "ms", 1e3)
            progress(f"{threads} threads: question, {tokens} tokens")
    table(
        f"training, {ROWS} rows of {LENGTH} tokens with {TRAINED_IMAGES} images, {of}", training_times(sides, runs), "s", 1
    )
    progress(f"{threads} threads: training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--memory-of", choices=("open_flamingo", "zoo"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads[0])
    if options.memory_of:
        print(json.dumps(memory(options.memory_of)))
        return
    show(f"{machine()}; transformers {transformers.__version__}, {WHEEL[0]} {WHEEL[1]}")
    show(f"\nmemory of a training step, {options.threads[0]} threads")
    rows = memories(options.threads[0])
    for side, (before, added) in rows.items():
        ratio = rows["open_flamingo"][1] / added
        show(f"  {side:<30} {added:>6.0f} MiB at its peak beside the {before:.0f} before it   {ratio:>6.2f}x")
    sides = Sides()
    show("\nthe same weights on both sides")
    sides.agree()
    for threads in options.threads:
        measure(sides, threads, options.runs)


if __name__ == "__main__":
    main()
