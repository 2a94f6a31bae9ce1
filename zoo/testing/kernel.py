"""What a kernel promises: its layers multiply by what they keep, rows keep to themselves, and models run, adapt and write by it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.adapters.adapt import Adapters
from zoo.adapters.adapted import Adapted
from zoo.decoding.generation import generate
from zoo.decoding.reading import batch_of
from zoo.models.kernels import kernel_named
from zoo.nn.kernels.apply import Plan, apply_layers
from zoo.nn.kernels.contract import CompileRequest, Kernel, LayerFormat, Tensors
from zoo.nn.kernels.exact import HalfLinear, PackedLinear
from zoo.nn.kernels.seam import is_kernel_linear
from zoo.registry.card import KernelFacts
from zoo.testing.adapter import small_decoder
from zoo.testing.check import SEED, CheckFailed, CheckSkipped, Subject, check

KERNELS = ("kernel",)
EXACT_INPUTS, ROUNDED_INPUTS = 1e-5, 0.03  # of the sum of the products' sizes, where inputs stay and where they are rounded
SIZES = ((64, 128), (1, 64), (130, 256), (7, 33), (1, 1), (96, 576))
TINY_BITS_TOLERANCE = 1.05
WIDTH = 128  # of the decoder: a whole group of most formats
COSINE = 0.9  # of logits by the crudest of formats, on drawn weights


@check("kernel", "Its builder gives a kernel with the pieces that the card names.", kinds=KERNELS, needs_model=False)
def pieces_are_there(subject: Subject) -> None:
    kernel, facts = _kernel(subject), _facts(subject)
    has = {"layer": kernel.linear is not None, "module": kernel.compile is not None, "step": kernel.step is not None}
    for piece, there in has.items():
        if there != (piece in facts.takes):
            raise CheckFailed(
                f"the card says takes = {list(facts.takes)}, the kernel has {piece if there else f'no {piece}'}"
            )
    if not any(has.values()):
        raise CheckFailed("the kernel has neither linear, compile nor step")


@check("kernel", "A layer gives the product with the weight that its tensors stand for.", kinds=KERNELS, needs_model=False)
def products_are_right(subject: Subject) -> None:
    bound = ROUNDED_INPUTS if _facts(subject).rounds_inputs else EXACT_INPUTS
    for form, weight_NK, tensors in _formats(subject):
        inputs_MK, bias_N = _drawn(5, weight_NK.shape[1], seed=2), _drawn(weight_NK.shape[0], 1, seed=3)[:, 0]
        kept_NK = form.dequantise(tensors)
        if kept_NK.shape != weight_NK.shape or kept_NK.dtype != torch.float32:
            raise CheckFailed(f"dequantise gives {kept_NK.dtype}{list(kept_NK.shape)} for float32{list(weight_NK.shape)}")
        for bias in (None, bias_N):
            found = _layer(form, tensors, bias)(inputs_MK)
            exact = inputs_MK.double() @ kept_NK.double().T + (0 if bias is None else bias.double())
            sums = inputs_MK.double().abs() @ kept_NK.double().abs().T + 1e-30
            _expect_near(found, exact, sums, bound, f"a layer of {list(weight_NK.shape)}")


@check("kernel", "What is kept of a weight is nearer to it the more bits there are, and takes those bits.", kinds=KERNELS, needs_model=False)  # fmt: skip
def bits_are_as_said(subject: Subject) -> None:
    facts = _facts(subject)
    form = _linear(subject)
    weight_NK = _drawn(256, 1024, seed=4)
    tensors = form.quantise(weight_NK)
    bits = sum(tensor.numel() * tensor.element_size() * 8 for tensor in tensors.values()) / weight_NK.numel()
    if bits > facts.bits * TINY_BITS_TOLERANCE + 0.05:
        raise CheckFailed(f"a weight of 256 x 1024 takes {bits:.2f} bits each, the card says {facts.bits:g}")
    error = float((form.dequantise(tensors) - weight_NK).norm() / weight_NK.norm())
    if not error <= 0.6:
        raise CheckFailed(f"what is kept of a drawn weight is off by {error:.0%} of its length")


@check("kernel", "A layer gives its tensors back, bit for bit, and they are plain.", kinds=KERNELS, needs_model=False)
def tensors_come_back(subject: Subject) -> None:
    for form, weight_NK, tensors in _formats(subject):
        layer = _layer(form, tensors, None)
        again = layer.tensors()
        if tensors.keys() != again.keys():
            raise CheckFailed(f"quantise gives {', '.join(tensors)}, the layer {', '.join(again)}")
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.requires_grad:
                raise CheckFailed(f"{name} is {tensor.layout} and cannot be written as it is")
            if tensor.dtype != again[name].dtype or not torch.equal(tensor, again[name].to(tensor.device)):
                raise CheckFailed(f"{name} of a weight of {list(weight_NK.shape)} is another in the layer")
        if any(True for _ in layer.parameters()):
            raise CheckFailed("a layer of a kernel has no parameters: its tensors are buffers")


@check("kernel", "What other rows hold changes nothing for a row.", kinds=KERNELS, needs_model=False)
def rows_keep_to_themselves(subject: Subject) -> None:
    form = _linear(subject)
    layer = _layer(form, form.quantise(_drawn(64, 128, seed=1)), None)
    for rows in (1, 3, 40):
        inputs = _drawn(rows, 128, seed=5)
        quiet, loud = torch.cat((inputs, torch.zeros(2, 128))), torch.cat((inputs, 1e3 * _drawn(2, 128, seed=6)))
        if not torch.equal(layer(quiet)[:rows], layer(loud)[:rows]):
            raise CheckFailed(f"{rows} rows are others beside loud ones")
    for shape in ((128,), (2, 128), (2, 3, 128), (0, 128)):
        found = layer(torch.ones(shape))
        if found.shape != (*shape[:-1], 64) or found.dtype != torch.float32:
            raise CheckFailed(f"float32{list(shape)} became {found.dtype}{list(found.shape)}")


@check("kernel", "Gradients reach the inputs of its layers where the card says so.", kinds=KERNELS, needs_model=False)
def gradients_are_as_said(subject: Subject) -> None:
    form, said = _linear(subject), _facts(subject).gradients
    tensors = form.quantise(_drawn(64, 128, seed=1))
    layer = _layer(form, tensors, None)
    if bool(getattr(layer, "passes_gradients", False)) != said:
        raise CheckFailed(f"the card says gradients = {str(said).lower()}, passes_gradients of a layer says otherwise")
    if not said:
        raise CheckSkipped("the card says that none do")
    inputs, pulls = _drawn(5, 128, seed=2).requires_grad_(True), _drawn(5, 64, seed=7)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(layer(inputs), inputs, pulls)
    exact = pulls.double() @ form.dequantise(tensors).double()
    _expect_near(found, exact, pulls.double().abs() @ form.dequantise(tensors).double().abs(), 1e-2, "the gradient")


@check("kernel", "A decoder runs by it, writes the same alone and beside others, and takes an adapter on top.", kinds=KERNELS, needs_model=False)  # fmt: skip
def a_decoder_runs_by_it(subject: Subject) -> None:
    kernel = _kernel(subject)
    _linear(subject)
    plain, fast = small_decoder(WIDTH), small_decoder(WIDTH)
    apply_layers(fast, Plan(kernel=kernel, name=subject.name))
    if not any(is_kernel_linear(part) and not isinstance(part, (PackedLinear, HalfLinear)) for part in fast.modules()):
        raise CheckFailed(f"none of its layers is in a decoder of width {WIDTH}")
    rows = [[3, 5, 8, 13, 21, 34], [1, 2], [40, 41, 42]]
    tokens_BT, mask_BT = batch_of(rows)
    with torch.inference_mode():
        wanted, found = (model(tokens_BT, mask_BT=mask_BT)[mask_BT] for model in (plain, fast))
    cosine = float(torch.nn.functional.cosine_similarity(wanted.flatten(), found.flatten(), 0))
    if not cosine >= COSINE:
        raise CheckFailed(f"the logits of a decoder have cosine {cosine:.3f} to float32's, expected {COSINE}")
    answers = generate(fast, rows, max_tokens=5)
    for row, answer in zip(rows, answers, strict=True):
        (alone,) = generate(fast, [row], max_tokens=5)
        if alone.ids != answer.ids:
            raise CheckFailed(f"it writes {list(answer.ids)} beside others and {list(alone.ids)} alone")
    _takes_an_adapter(subject, fast, tokens_BT)


def _takes_an_adapter(subject: Subject, fast: Any, tokens_BT: torch.Tensor) -> None:
    if not any(card.name == "adapters/lora" for card in subject.registry.cards(kind="adapter")):
        return
    with torch.inference_mode():
        before = fast(tokens_BT)
    adapters = Adapters(Adapted(fast), subject.registry)
    adapters.add("adapters/lora", name="kit", targets=["query", "down"])
    with torch.no_grad():
        for parameter in adapters["kit"].parameters():
            parameter.add_(0.1)
    with torch.inference_mode():
        if torch.equal(fast(tokens_BT), before):
            raise CheckFailed("an adapter on its layers changes nothing")


@check("kernel", "A module that it compiled gives what the module gives, row by row, and again from what was kept.", kinds=KERNELS, needs_model=False)  # fmt: skip
def compiled_modules_give_the_same(subject: Subject) -> None:
    kernel, facts = _kernel(subject), _facts(subject)
    if kernel.compile is None:
        raise CheckSkipped("it compiles no whole modules")
    with _seeded():
        module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(8 * 64, 10)).eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(SEED))
    bound = ROUNDED_INPUTS if facts.bits < 32 or facts.rounds_inputs else EXACT_INPUTS
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        request = CompileRequest(key="kit", cache=Path(folder), calibration=[(images,)])
        expected = module(images)
        scale = expected.abs().max() * torch.ones_like(expected)
        for words in ("at first", "from what was kept"):
            compiled = kernel.compile(module, request)
            _expect_near(compiled(images), expected, scale, bound, f"a compiled module, {words},")
            for row in range(len(images)):
                alone = compiled(images[row : row + 1])
                _expect_near(alone, expected[row : row + 1], scale[:1], bound, f"row {row} of a compiled module")


@check("kernel", "Its step reads and writes tokens as the layers do, one by one and many at once.", kinds=KERNELS, needs_model=False)  # fmt: skip
def its_step_is_the_layers(subject: Subject) -> None:
    kernel = _kernel(subject)
    if kernel.step is None:
        raise CheckSkipped("it has no step")
    decoder = small_decoder(WIDTH)
    apply_layers(decoder, Plan(kernel=kernel, name=subject.name))
    step: Any = decoder.step
    if step is None:
        raise CheckSkipped("it knows no decoder of this shape here")
    tokens_BT = torch.tensor([[3, 5, 8, 13, 21], [0, 0, 1, 2, 40]])
    mask_BT = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    with torch.inference_mode():
        whole = decoder(tokens_BT, mask_BT=mask_BT)
        cache = decoder.new_cache(2, 8)
        if step.takes(None) or step.takes(cache, before_layer=print) or not step.takes(cache):
            raise CheckFailed("it takes a call without a cache, or with what it cannot know, or none with a cache")
        for at in (slice(0, 3), slice(3, 4), slice(4, 5)):
            found = step(tokens_BT[:, at], cache, mask_BT=mask_BT[:, at])
            real = mask_BT[:, at]
            scale = whole[:, at][real].abs().max() * torch.ones_like(whole[:, at][real])
            _expect_near(
                found[real], whole[:, at][real], scale, ROUNDED_INPUTS, f"the step at tokens {at.start} to {at.stop}"
            )


def _kernel(subject: Subject) -> Kernel:
    facts = _facts(subject)
    if facts.instruction_sets and not any(has_instructions(name) for name in facts.instruction_sets):
        raise CheckSkipped(f"this processor has none of {', '.join(facts.instruction_sets)}")
    name = f"{subject.found.card.provider.distribution}:{subject.found.card.name}"
    return kernel_named(name, subject.registry).kernel


def has_instructions(name: str) -> bool:
    """Whether torch knows of an instruction set of this processor, by the name that Linux has for it."""
    known: dict[str, Callable[[], bool]] = {
        "avx2": torch.cpu._is_avx2_supported,  # noqa: SLF001 - torch says it nowhere else
        "avx512f": torch.cpu._is_avx512_supported,  # noqa: SLF001 - as above
        "avx512_vnni": torch.cpu._is_vnni_supported,  # noqa: SLF001 - as above
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported,  # noqa: SLF001 - as above
        "amx_tile": torch.cpu._is_amx_tile_supported,  # noqa: SLF001 - as above
    }
    return name in known and bool(known[name]())


def _facts(subject: Subject) -> KernelFacts:
    facts = subject.found.card.kernel
    if facts is None:
        raise CheckFailed("the card has no kernel = { ... }")
    return facts


def _linear(subject: Subject) -> LayerFormat:
    form = _kernel(subject).linear
    if form is None:
        raise CheckSkipped("it has no layers")
    return form


def _formats(subject: Subject) -> Iterator[tuple[LayerFormat, torch.Tensor, Tensors]]:
    """Each size that the format says it fits, with what it keeps of a drawn weight."""
    form, found = _linear(subject), 0
    for outputs, inputs in SIZES:
        if form.fits(outputs, inputs):
            found += 1
            weight_NK = _drawn(outputs, inputs, seed=outputs)
            yield form, weight_NK, form.quantise(weight_NK)
    if not found:
        raise CheckFailed(f"it fits none of the sizes {', '.join(f'{rows} x {columns}' for rows, columns in SIZES)}")


def _layer(form: LayerFormat, tensors: Tensors, bias_N: torch.Tensor | None) -> Any:
    layer = form.layer(tensors, bias_N)
    if not is_kernel_linear(layer):
        raise CheckFailed(
            f"a layer is {type(layer).__name__}, without number_format, in_features, out_features, forward and tensors"
        )
    return layer


def _drawn(rows: int, columns: int, *, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@contextmanager
def _seeded() -> Iterator[None]:
    """Torch's own numbers from a seed, for what draws its parameters itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def _expect_near(found: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor, bound: float, what: str) -> None:
    if found.shape != exact.shape or not bool(found.isfinite().all()):
        raise CheckFailed(f"{what} gives {found.dtype}{list(found.shape)}, expected finite numbers {list(exact.shape)}")
    apart = float(((found.double() - exact.double()).abs() / scale).max())
    if apart > bound:
        raise CheckFailed(f"{what} is off by {apart:.1e} of the sum of its products, expected {bound:.0e}")
