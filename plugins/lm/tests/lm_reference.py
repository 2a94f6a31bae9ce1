"""Tiny models of transformers and ours with the same random weights, and how far their numbers lie apart.

The tests assert on what is measured here, and `parity_table.py` prints it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from zoo_lm import bert, bloom, gpt2, llama, mixtral, switch, t5

from zoo.weights.strict_load import load_strict

VOCABULARY, CONTEXT = 61, 64
LENGTHS = (9, 6, 4)  # real tokens of the rows
READ_AT_ONCE = 5  # of the nine, before the steps
SIZES = {"layers": 3, "width": 32, "heads": 4, "vocabulary": VOCABULARY, "context": CONTEXT}
LLAMA = {**SIZES, "hidden": 48, "kv_heads": 2, "head_width": 12, "epsilon": 1e-5}
STRETCHED = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}


@dataclass(frozen=True)
class Case:
    """One architecture: how transformers builds it and how we do.

    options: of the key maps.
    """

    name: str
    reference: str
    make_reference: Callable[[], Any]
    build: Callable[[], nn.Module]
    maps: Any
    kind: str = "decoder"
    options: dict[str, Any] = field(default_factory=dict)

    def from_transformers(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.maps.from_transformers(state, **self.options)

    def to_transformers(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.maps.to_transformers(state, **self.options)


def reference_of(name: str, **numbers: Any) -> Any:
    """A model of transformers with random weights large enough that every part of it matters.

    Without a padding token: transformers would not train its embedding, whereas padding is a matter of masks here.
    """
    kind = getattr(transformers, name)
    config = kind.config_class(
        vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=1, pad_token_id=None, attn_implementation="eager", **numbers
    )
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def llama_reference(kind: str = "default", *, tied: bool = False) -> Any:
    return reference_of(
        "LlamaForCausalLM",
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=48,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **STRETCHED.get(kind, {})},
    )


def t5_reference(version: str) -> Any:
    model = reference_of(
        "T5ForConditionalGeneration",
        d_model=32,
        d_kv=12,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="relu" if version == "1.0" else "gated-gelu",
        tie_word_embeddings=version == "1.0",
    )
    if (
        version == "1.1"
    ):  # transformers ties what is equal, whatever the configuration says, and unties what a file has twice
        model.lm_head.weight = nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))
    return model


def switch_reference(capacity: int = 64, sparse: int = 2) -> Any:
    return reference_of(
        "SwitchTransformersForConditionalGeneration",
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=sparse,
        num_sparse_decoder_layers=sparse,
        num_heads=4,
        num_experts=4,
        expert_capacity=capacity,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        router_jitter_noise=0.0,
    )


def switch_model(**numbers: Any) -> nn.Module:
    sizes = {**SIZES, "layers": 4, "hidden": 48, "experts": 4, "buckets": 8, "farthest": 16}
    return switch.build(**{**sizes, **numbers})


def t5_model(version: str) -> nn.Module:
    sizes = {**SIZES, "layers": 2, "decoder_layers": 3, "hidden": 48, "head_width": 12, "buckets": 8, "farthest": 16}
    return t5.build(**sizes, version=version)


def llama_cases() -> list[Case]:
    scaled = [
        Case(
            f"Llama, {kind} positions",
            "LlamaForCausalLM",
            partial(llama_reference, kind),
            partial(llama.build, **LLAMA, scaling={"kind": kind, **STRETCHED[kind]}),
            llama,
        )
        for kind in STRETCHED
    ]
    plain = Case("Llama", "LlamaForCausalLM", llama_reference, partial(llama.build, **LLAMA), llama)
    tied = partial(llama.build, **LLAMA, tied=True)
    return [
        plain,
        Case("Llama, tied head", "LlamaForCausalLM", partial(llama_reference, tied=True), tied, llama),
        *scaled,
    ]


def cases() -> list[Case]:
    mixtral_sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    gpt2_sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48}
    bert_sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return [
        *llama_cases(),
        Case(
            "Mixtral",
            "MixtralForCausalLM",
            partial(
                reference_of,
                "MixtralForCausalLM",
                **mixtral_sizes,
                intermediate_size=48,
                num_local_experts=4,
                max_position_embeddings=CONTEXT,
                experts_implementation="eager",
            ),
            partial(mixtral.build, **SIZES, kv_heads=2, hidden=48, experts=4),
            mixtral,
        ),
        Case(
            "GPT-2",
            "GPT2LMHeadModel",
            partial(reference_of, "GPT2LMHeadModel", **gpt2_sizes),
            partial(gpt2.build, **SIZES, hidden=48),
            gpt2,
        ),
        Case(
            "BLOOM",
            "BloomForCausalLM",
            partial(reference_of, "BloomForCausalLM", hidden_size=36, n_layer=3, n_head=6),
            partial(bloom.build, **{**SIZES, "width": 36, "heads": 6}),
            bloom,
            options={"heads": 6},
        ),
        Case(
            "BERT",
            "BertForMaskedLM",
            partial(reference_of, "BertForMaskedLM", **bert_sizes, max_position_embeddings=CONTEXT),
            partial(bert.build, **SIZES, hidden=48),
            bert,
            kind="masked",
        ),
        *(
            Case(
                f"T5 {version}",
                "T5ForConditionalGeneration",
                partial(t5_reference, version),
                partial(t5_model, version),
                t5,
                kind="encoder-decoder",
            )
            for version in ("1.0", "1.1")
        ),
        Case(
            "Switch",
            "SwitchTransformersForConditionalGeneration",
            switch_reference,
            switch_model,
            switch,
            kind="encoder-decoder",
        ),
    ]


@dataclass(frozen=True)
class Batch:
    """tokens_BT, mask_BT and, for an encoder-decoder, a source with its mask. Masks are None without padding."""

    tokens_BT: torch.Tensor
    mask_BT: torch.Tensor | None
    source_BS: torch.Tensor
    source_mask_BS: torch.Tensor | None

    @property
    def real(self) -> torch.Tensor:
        return torch.ones_like(self.tokens_BT, dtype=torch.bool) if self.mask_BT is None else self.mask_BT

    @property
    def positions(self) -> torch.Tensor:
        return (self.real.cumsum(1) - 1).clamp(min=0)


def batch(padding: str = "none") -> Batch:
    """padding: none, left or right; what stands there are ids like any other."""
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    source_BS = torch.randint(VOCABULARY, (len(LENGTHS), max(LENGTHS) + 2), generator=generator)
    if padding == "none":
        return Batch(tokens_BT, None, source_BS, None)
    mask_BT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    source_mask_BS = torch.arange(max(LENGTHS) + 2) < torch.tensor(LENGTHS).flip(0)[:, None] + 2
    if padding == "left":
        mask_BT, source_mask_BS = mask_BT.flip(1), source_mask_BS.flip(1)
    return Batch(tokens_BT, mask_BT, source_BS, source_mask_BS)


def same_weights(case: Case) -> tuple[Any, Any]:
    """transformers' model and ours; ours has read its weights through the key map, strictly."""
    reference, ours = case.make_reference(), case.build()
    load_strict(ours, case.from_transformers(reference.state_dict()), case.name)
    return reference, ours.eval()


def our_logits(case: Case, ours: Any, given: Batch) -> torch.Tensor:
    if case.kind == "encoder-decoder":
        return ours(given.source_BS, given.tokens_BT, source_mask_BS=given.source_mask_BS, mask_BT=given.mask_BT)
    types = {"types_BT": types_of(given)} if case.kind == "masked" else {}
    return ours(given.tokens_BT, mask_BT=given.mask_BT, **types)


def reference_logits(case: Case, reference: Any, given: Batch) -> torch.Tensor:
    if case.kind == "encoder-decoder":
        return reference(
            input_ids=given.source_BS,
            decoder_input_ids=given.tokens_BT,
            attention_mask=None if given.source_mask_BS is None else given.source_mask_BS.long(),
            decoder_attention_mask=given.real.long(),
            use_cache=None,
        ).logits
    extra = {} if "Bloom" in case.reference else {"position_ids": given.positions}
    if case.kind == "masked":
        extra["token_type_ids"] = types_of(given)
    return reference(given.tokens_BT, attention_mask=given.real.long(), **extra).logits


def types_of(given: Batch) -> torch.Tensor:
    return (given.positions > 2).long()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """By name, those of tied parameters under each of their names; zero for what nothing reached."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def gradient_difference(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> float:
    """The greatest difference, over the greatest gradient of its tensor.

    Where that is under a hundredth of the greatest of all (the bias of a key has none at all, but for rounding), over that.
    """
    assert theirs.keys() == ours.keys()
    floor = max(tensor.abs().max().item() for tensor in theirs.values()) / 100
    return max(
        (ours[key] - tensor).abs().max().item() / max(tensor.abs().max().item(), floor) for key, tensor in theirs.items()
    )


def forward_and_backward(case: Case, reference: Any, ours: Any, given: Batch) -> tuple[float, float]:
    """Greatest difference of the logits of real tokens (they are of the order of 1), and of the gradients of all parameters."""
    weights_BTV = torch.randn(*given.tokens_BT.shape, VOCABULARY, generator=torch.Generator().manual_seed(2))
    logits = []
    for model, run in ((reference, reference_logits), (ours, our_logits)):
        model.zero_grad()
        logits.append(run(case, model, given)[given.real])
        (logits[-1] * weights_BTV[given.real]).sum().backward()
    difference = (logits[0] - logits[1]).abs().max().item()
    return difference, gradient_difference(case.from_transformers(gradients(reference)), gradients(ours))


@torch.no_grad()
def cached_difference(case: Case, reference: Any, ours: Any, given: Batch) -> float:
    """Greatest difference of our logits one step at a time from those of a whole reading and from transformers' own steps."""
    whole_BTV = our_logits(case, ours, given)
    real_BT = given.real
    ours_BTV, theirs_BTV = our_steps(case, ours, given), reference_steps(case, reference, given)
    assert not torch.equal(ours_BTV, whole_BTV)  # they were computed another way
    return max((ours_BTV - other_BTV)[real_BT].abs().max().item() for other_BTV in (whole_BTV, theirs_BTV))


def steps() -> list[slice]:
    return [slice(0, READ_AT_ONCE), *(slice(at, at + 1) for at in range(READ_AT_ONCE, max(LENGTHS)))]


def our_steps(case: Case, ours: Any, given: Batch) -> torch.Tensor:
    decoder = ours.decoder if case.kind == "encoder-decoder" else ours
    cache = decoder.new_cache(len(LENGTHS), 3)  # it grows
    logits = []
    for step in steps():
        mask_BT = None if given.mask_BT is None else given.mask_BT[:, step]
        tokens_BT = given.tokens_BT[:, step]
        if case.kind == "encoder-decoder":
            more = {"source_mask_BS": given.source_mask_BS, "mask_BT": mask_BT, "cache": cache}
            logits.append(ours(given.source_BS, tokens_BT, **more))
        else:
            logits.append(ours(tokens_BT, mask_BT=mask_BT, cache=cache))
    return torch.cat(logits, 1)


def reference_steps(case: Case, reference: Any, given: Batch) -> torch.Tensor:
    more: dict[str, Any] = {"use_cache": True}
    names = {"tokens": "input_ids", "mask": "attention_mask"}
    if case.kind == "encoder-decoder":
        source_mask = None if given.source_mask_BS is None else given.source_mask_BS.long()
        encoded = reference.get_encoder()(given.source_BS, attention_mask=source_mask)
        more |= {"encoder_outputs": encoded, "attention_mask": source_mask}
        names = {"tokens": "decoder_input_ids", "mask": "decoder_attention_mask"}
    logits = []
    for step in steps():
        more |= {names["tokens"]: given.tokens_BT[:, step], names["mask"]: given.real[:, : step.stop].long()}
        if case.kind == "decoder" and "Bloom" not in case.reference:
            more["position_ids"] = given.positions[:, step]
        output = reference(**more)
        more["past_key_values"] = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, 1)


@dataclass(frozen=True)
class Measured:
    """Greatest differences; padding: of both with padding on either side; cache: None where the architecture has none."""

    logits: float
    gradients: float
    padding: float
    cache: float | None


def measure(case: Case) -> Measured:
    reference, ours = same_weights(case)
    logits, gradient = forward_and_backward(case, reference, ours, batch())
    padded = [number for side in ("left", "right") for number in forward_and_backward(case, reference, ours, batch(side))]
    cached = None
    if case.kind != "masked":
        cached = max(cached_difference(case, reference, ours, batch(side)) for side in ("none", "left"))
    return Measured(logits, gradient, max(padded), cached)


def bound(difference: float) -> str:
    """A power of ten that the difference is well under: another machine rounds otherwise, and should print the same."""
    return f"< 1e{math.ceil(math.log10(max(2 * difference, 1e-9))):d}"
