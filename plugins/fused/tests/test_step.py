"""A decoder's native step against its modules: the same blocks, the same cache, in every way that zoo calls it."""

import os
import threading
from typing import Any

import pytest
import torch
from torch import nn
from zoo_fused import ops
from zoo_fused.linear import BlockEmbedding, BlockLinear, dequantise, quantise
from zoo_fused.native import supported_isas
from zoo_fused.step import FusedStep, fused_step

from zoo.api import UsageError
from zoo.nn import Attention, Block, Cache, Decoder, Dense, Gated, LearnedPositions, RMSNorm, Rotary, Stack

VOCABULARY, CONTEXT = 70, 128
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "wide heads": {"head_width": 40, "heads": 4, "kv_heads": 4},
    "one key": {"head_width": 80, "heads": 6, "kv_heads": 1, "layers": 1},
    "many queries": {"head_width": 2, "heads": 80, "kv_heads": 2, "width": 96, "layers": 1},
    "separate": {"joined": False, "kinds": ("Q4_0", "Q8_0")},
    "gpt": {"gpt": "gelu", "layers": 2},
    "opt": {"gpt": "relu", "head_width": 8, "kv_heads": 4, "layers": 1},
    "k blocks": {"width": 256, "hidden": 256, "kinds": ("Q4_K", "Q6_K"), "layers": 1},
}


def small_decoder(
    *,
    layers: int = 2, width: int = 64, heads: int = 4, kv_heads: int = 2, head_width: int | None = None, hidden: int = 96,
    gpt: str = "", joined: bool = True, kinds: tuple[str, ...] = ("Q4_1",),
) -> Decoder:  # fmt: skip
    """Random, in blocks, as a kernel leaves it: projections joined, the head beside the table."""
    torch.manual_seed(1)

    def norm() -> nn.Module:
        return nn.LayerNorm(width) if gpt else RMSNorm(width, epsilon=1e-5)

    blocks = [
        Block(
            attention_norm=norm(),
            attention=Attention(width, heads=heads, kv_heads=kv_heads, head_width=head_width, bias=bool(gpt)),
            feed_forward_norm=norm(),
            feed_forward=Dense(width, hidden, activation=gpt) if gpt else Gated(width, hidden),
        )
        for _ in range(layers)
    ]
    decoder = Decoder(
        embedding=nn.Embedding(VOCABULARY, width),
        stack=Stack(blocks, norm=norm(), rotary=None if gpt else Rotary(head_width or width // heads, positions=CONTEXT), causal=True),
        context=CONTEXT,
        position_embedding=LearnedPositions(CONTEXT, width) if gpt else None,
    )  # fmt: skip
    for parameter in decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
        parameter.requires_grad_(False)
    table = quantise(decoder.embedding.weight, "Q8_0")
    decoder.embedding, decoder.head = BlockEmbedding(table), BlockLinear(table)
    for number, block in enumerate(blocks):
        put_in_blocks(block, kinds[number % len(kinds)], kinds[-1], joined=joined)
    return decoder.eval()


def put_in_blocks(block: Any, kind: str, other: str, *, joined: bool) -> None:
    attention, forward = block.attention, block.feed_forward
    if joined:
        attention.query_key_value = layer_of(kind, attention.query, attention.key, attention.value)
    else:
        attention.query, attention.key = layer_of(kind, attention.query), layer_of(kind, attention.key)
        attention.value = layer_of(other, attention.value)
    attention.output = layer_of(other, attention.output)
    if isinstance(forward, Gated) and joined:
        forward.gate_and_up = layer_of(kind, forward.gate, forward.up)
    elif isinstance(forward, Gated):
        forward.gate, forward.up = layer_of(kind, forward.gate), layer_of(other, forward.up)
    else:
        forward.up = layer_of(kind, forward.up)
    forward.down = layer_of(other, forward.down)


def layer_of(kind: str, *layers: nn.Linear) -> BlockLinear:
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return BlockLinear(quantise(weight, kind) if kind in ("Q4_0", "Q4_1", "Q8_0") else k_blocks(weight, kind), bias)


def k_blocks(weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """Random blocks of a type that we do not make, with weights of about the right size."""
    size = {"Q4_K": 144, "Q6_K": 210}[kind]
    blocks = torch.randint(0, 256, (len(weight), weight.shape[1] // 256, size), dtype=torch.uint8)
    for offset, scale in {"Q4_K": ((0, 2e-4), (2, 1e-3)), "Q6_K": ((208, 5e-5),)}[kind]:
        blocks[..., offset : offset + 2] = torch.tensor([scale], dtype=torch.float16).view(torch.uint8)
    return {kind: blocks.flatten(1)}


def new_cache(decoder: Decoder, batch: int, capacity: int = 4) -> Cache:
    attention: Any = decoder.stack.blocks[0].attention
    return Cache(
        layers=decoder.layers, batch=batch, kv_heads=attention.kv_heads, head_width=attention.head_width, capacity=capacity
    )


@pytest.fixture(scope="module", params=SHAPES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return small_decoder(**SHAPES[request.param])


@pytest.fixture(scope="module")
def step(decoder: Decoder) -> FusedStep:
    found = fused_step(decoder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def llama() -> FusedStep:
    found = fused_step(small_decoder())
    assert found is not None
    return found


def tokens_of(batch: int, count: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, count), generator=torch.Generator().manual_seed(batch * 100 + count))


def ragged_mask() -> torch.Tensor:
    mask = torch.ones(3, 21, dtype=torch.bool)
    mask[0, :7] = False
    mask[1, 15:] = False
    mask[2, 3] = False
    return mask


def errors_of(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Median and greatest over tokens of the difference, as parts of the greatest logit.

    Sums differ in their last digits, and where one of those moves an input across the edge of a level, by a level: so the median is
    held to the digits, the greatest to a level.
    """
    each = (expected - found).abs().amax(-1).flatten() / expected.abs().max()
    return float(each.median()), float(each.max())


@pytest.mark.parametrize("mask", [None, ragged_mask()], ids=["even", "ragged"])
def test_a_step_is_what_the_modules_compute(decoder: Decoder, step: FusedStep, mask: torch.Tensor | None) -> None:
    theirs, ours = new_cache(decoder, 3), new_cache(decoder, 3)
    expected, found = [], []
    for count in (21, 1, 1, 5, 1):  # a prompt, tokens one by one, a draft of five
        given = mask if count == 21 else None
        expected.append(decoder(tokens_of(3, count), cache=theirs, mask_BT=given))
        found.append(step(tokens_of(3, count), ours, mask_BT=given))
    median, greatest = errors_of(torch.cat(expected, 1), torch.cat(found, 1))
    assert median < 1e-5
    assert greatest < 0.03
    filled = slice(0, theirs.length)
    assert ours.length == theirs.length
    assert torch.equal(ours.valid_BS[:, filled], theirs.valid_BS[:, filled])
    assert torch.equal(ours.counts_B, theirs.counts_B)
    moved = (ours.store[..., filled, :] - theirs.store[..., filled, :]).abs()
    assert float(moved.median()) < 1e-5 * float(theirs.store.abs().max())


def test_a_step_is_near_the_model_with_plain_weights(
    decoder: Decoder, step: FusedStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(2, 30)
    found = step(tokens, new_cache(decoder, 2))
    monkeypatch.setenv(
        "ZOO_FUSED_ISA", "pytorch"
    )  # the modules then compute with the weights in float32, inputs as they are
    expected = decoder(tokens, cache=new_cache(decoder, 2))
    assert float((found - expected).norm() / expected.norm()) < 0.04


@pytest.mark.parametrize("isa", supported_isas())
def test_every_instruction_set_computes_the_same(step: FusedStep, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = step.decoder
    best = step(tokens_of(2, 9), new_cache(decoder, 2))
    monkeypatch.setenv("ZOO_FUSED_ISA", isa)
    median, greatest = errors_of(best, step(tokens_of(2, 9), new_cache(decoder, 2)))
    assert median < 1e-5
    assert greatest < 0.03


def test_threads_and_chunks_change_nothing(step: FusedStep) -> None:
    decoder, tokens, mask = step.decoder, tokens_of(3, 21), ragged_mask()
    whole_cache = new_cache(decoder, 3)
    whole = step(tokens, whole_cache, mask_BT=mask)
    for threads, width in ((2, 21), (1, 4), (3, 1)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            cache = new_cache(decoder, 3)
            parts = [step(tokens[:, t : t + width], cache, mask_BT=mask[:, t : t + width]) for t in range(0, 21, width)]
        finally:
            torch.set_num_threads(before)
        assert torch.equal(torch.cat(parts, 1), whole)
        assert torch.equal(cache.store[..., :21, :], whole_cache.store[..., :21, :])


def test_long_prompts_and_large_batches_are_read_in_chunks(llama: FusedStep) -> None:
    decoder = llama.decoder
    tokens = tokens_of(5, 100)
    whole = llama(tokens, new_cache(decoder, 5))  # 500 tokens: two chunks inside the call
    alone = torch.cat([llama(row[None], new_cache(decoder, 1)) for row in tokens])
    assert torch.equal(whole, alone)
    many = tokens_of(300, 2)
    assert torch.equal(llama(many, new_cache(decoder, 300))[299:], llama(many[299:], new_cache(decoder, 1)))


def test_chosen_tokens_alone_get_logits(llama: FusedStep) -> None:
    tokens, at = tokens_of(3, 9), torch.tensor([[8, 0], [3, 3], [1, 7]])
    every = llama(tokens, new_cache(llama.decoder, 3))
    some = llama(tokens, new_cache(llama.decoder, 3), at_BN=at)
    assert torch.equal(some, every.gather(1, at[:, :, None].expand(-1, -1, VOCABULARY)))
    cache = new_cache(llama.decoder, 3)
    assert llama(tokens, cache, at_BN=torch.empty(3, 0, dtype=torch.long)).shape == (3, 0, VOCABULARY)
    assert cache.length == 9
    assert cache.store[..., :9, :].abs().amin(-1).max() > 0


def test_rows_that_were_chosen_and_a_cache_that_was_cut_go_on(llama: FusedStep) -> None:
    decoder = llama.decoder
    cache = new_cache(decoder, 3)
    llama(tokens_of(3, 6), cache)
    cache.select(torch.tensor([2, 0]))  # the store is a view with the strides of the old one now
    assert not cache.store.is_contiguous()
    cache.truncate(5)
    other = new_cache(decoder, 2)
    llama(tokens_of(3, 6)[[2, 0], :5], other)
    assert torch.equal(llama(tokens_of(2, 1), cache), llama(tokens_of(2, 1), other))


def test_norms_and_biases_that_are_changed_in_place_are_seen() -> None:
    decoder = small_decoder(gpt="gelu", layers=1)
    step = fused_step(decoder)
    assert step is not None
    before = step(tokens_of(1, 3), new_cache(decoder, 1))
    block: Any = decoder.stack.blocks[0]
    block.attention_norm.weight.mul_(2)
    block.feed_forward.up.bias.add_(1)
    after = step(tokens_of(1, 3), new_cache(decoder, 1))
    assert not torch.equal(before, after)
    assert errors_of(decoder(tokens_of(1, 3), cache=new_cache(decoder, 1)), after)[1] < 0.03


def test_weights_lie_in_memory_once_and_come_back_bit_for_bit() -> None:
    decoder = small_decoder()
    kept = {
        name: part.tensors() for name, part in decoder.named_modules() if isinstance(part, BlockLinear | BlockEmbedding)
    }
    step = fused_step(decoder)
    assert step is not None
    arena = step.arena.memory
    for name, tensors in kept.items():
        part: Any = decoder.get_submodule(name)
        assert arena.data_ptr() <= part.tiles.data_ptr() < arena.data_ptr() + len(arena)
        assert all(torch.equal(part.tensors()[kind], blocks) for kind, blocks in tensors.items())
    assert decoder.embedding.tiles.data_ptr() == decoder.head.tiles.data_ptr()  # tied: once for both


def hook(*_: Any) -> None:
    return None


class Extended:
    names = ("adapter",)


def test_what_a_step_cannot_do_it_leaves_to_the_modules(llama: FusedStep) -> None:
    decoder = llama.decoder
    assert llama.takes(new_cache(decoder, 1), mask_BT=None, at_BN=torch.zeros(1, 1), before_layer=None)
    assert not llama.takes(None)
    assert not llama.takes(new_cache(decoder, 1), before_layer=hook)
    assert not llama.takes(new_cache(decoder, 1), inserted=(1, 2, 3))
    with pytest.raises(UsageError, match="ask `takes` first"):
        llama(tokens_of(1, 1), new_cache(decoder, 1), before_layer=hook)
    grown = new_cache(decoder, 1)
    grown.grow()
    assert not llama.takes(grown)
    for cache in (new_cache(decoder, 1), new_cache(decoder, 1)):
        cache.store = cache.store.double()
        assert not llama.takes(cache)
    block: Any = decoder.stack.blocks[1]
    for handle in (block.attention.output.register_forward_hook(hook), block.register_forward_pre_hook(hook)):
        assert not llama.takes(new_cache(decoder, 1))
        handle.remove()
    decoder.__dict__["zoo_extension"] = Extended()
    assert not llama.takes(new_cache(decoder, 1))
    del decoder.__dict__["zoo_extension"]
    block.attention_norm.weight.requires_grad_(True)
    assert not llama.takes(new_cache(decoder, 1))
    with torch.no_grad():
        assert llama.takes(new_cache(decoder, 1))
    block.attention_norm.weight.requires_grad_(False)
    assert llama.takes(new_cache(decoder, 1))


def test_decoders_of_another_shape_have_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(change: Any, **shape: Any) -> FusedStep | None:
        other: Any = small_decoder(layers=1, **shape)
        change(other)
        return fused_step(other)

    assert changed(lambda other: None) is not None
    assert changed(lambda other: setattr(other.stack.blocks[0], "post_norm", True)) is None
    assert changed(lambda other: setattr(other, "embedding_norm", nn.LayerNorm(64))) is None
    assert changed(lambda other: setattr(other.stack, "norm", nn.LayerNorm(64))) is None
    assert changed(lambda other: setattr(other.stack, "causal", False)) is None
    assert changed(lambda other: setattr(other.stack.blocks[0].feed_forward, "down", nn.Linear(96, 64))) is None
    assert changed(lambda other: setattr(other.stack.blocks[0].feed_forward, "activation", torch.tanh)) is None
    assert changed(lambda other: setattr(other, "head", None)) is None
    assert fused_step(nn.Linear(2, 2)) is None
    monkeypatch.setenv("ZOO_FUSED_ISA", "pytorch")
    assert changed(lambda other: None) is None


def test_wrong_calls_are_told_before_the_cache_is_touched(llama: FusedStep) -> None:
    decoder, good = llama.decoder, tokens_of(2, 3)
    cache = new_cache(decoder, 2)
    for tokens, others, message in (
        (good.float(), {}, "tokens must be int.B, T., got torch.float32"),
        (good[0], {}, r"got torch.int64\[3\]"),
        (good[:, :0], {}, r"got torch.int64\[2, 0\]"),
        (good + 70, {}, "token ids must be from 0 to 69, got"),
        (good - 70, {}, "token ids must be from 0 to 69, got -"),
        (tokens_of(3, 3), {}, "the cache has 2 rows, the tokens have 3"),
        (tokens_of(2, 129), {}, "reads at most 128 tokens, got 129"),
        (good, {"mask_BT": torch.ones(2, 3)}, "mask must be bool"),
        (good, {"mask_BT": torch.ones(2, 2, dtype=torch.bool)}, "mask must be bool"),
        (good, {"at_BN": torch.tensor([[3], [0]])}, "indices of tokens must be from 0 to 2, got 3"),
        (good, {"at_BN": torch.tensor([0, 1])}, "indices must be int"),
        (good, {"at_BN": torch.tensor([[0.0], [1.0]])}, "indices must be int"),
    ):
        with pytest.raises(UsageError, match=message):
            llama(tokens, cache, **others)
    for sizes in ({"layers": 3}, {"kv_heads": 4}, {"head_width": 8}):
        other = Cache(**{"layers": 2, "batch": 2, "kv_heads": 2, "head_width": 16, "capacity": 4, **sizes})
        with pytest.raises(UsageError, match="the cache is of another model"):
            llama(good, other)
    assert cache.length == 0
    assert not cache.store.any()


def arguments_of(step: FusedStep, batch: int = 2, count: int = 3) -> dict[str, Any]:
    """What the operation is called with."""
    return {
        "tokens": tokens_of(batch, count),
        "store": new_cache(step.decoder, batch, count).store,
        "arena": step.arena.memory,
        "plan": step.arena.plan,
        "numbers": step.arena.numbers,
        "cosine": step.cosine,
        "sine": step.sine,
        "table": step.table,
        "positions": torch.arange(count).expand(batch, count).contiguous(),
        "valid": None,
        "at": None,
        "start": 0,
        "vocabulary": VOCABULARY,
        "threads": 1,
    }


@pytest.mark.filterwarnings("ignore")
def test_the_operation_keeps_what_torch_asks_of_it(llama: FusedStep) -> None:
    torch.library.opcheck(ops.step, (), arguments_of(llama))
    torch.library.opcheck(
        ops.step, (), arguments_of(llama) | {"at": torch.tensor([[1], [2]]), "valid": torch.ones(2, 3, dtype=torch.bool)}
    )


def test_the_operation_refuses_what_does_not_fit(llama: FusedStep) -> None:
    good = arguments_of(llama)
    store = good["store"]
    for name, value, message in (
        ("tokens", good["tokens"].int(), "tokens must be torch.int64"),
        ("tokens", good["tokens"] * 0 + 70, "token ids must be from 0 to 69, got 70"),
        ("tokens", good["tokens"] * 0 - 1, "token ids must be from 0 to 69, got -1"),
        ("positions", good["positions"] + 128, "positions must be from 0 to 127, got 128"),
        ("positions", good["positions"] - 1, "positions must be from 0 to 127, got -1"),
        ("positions", good["positions"][:, :2], "positions must be torch.int64"),
        ("store", store[..., :2, :], "must lie one after another|the cache is of"),
        ("store", store[:, :, :1], "the cache is of 2 layers, 1 rows"),
        ("store", store[:1], "the cache is of 1 layers"),
        ("store", store.transpose(3, 4), "the slots of a cache must lie one after another"),
        ("store", store.double(), "the cache must be float32"),
        ("valid", torch.ones(2, 2, dtype=torch.bool), "valid slots must be"),
        ("valid", torch.ones(2, 3), "valid slots must be torch.bool"),
        ("at", torch.tensor([[3], [0]]), "indices of tokens must be from 0 to 2, got 3"),
        ("at", torch.tensor([[-1], [0]]), "got -1"),
        ("at", torch.tensor([0]), "indices must be torch.int64"),
        ("start", 1, "too few, or of another model"),
        ("start", -1, "no negative start"),
        ("start", 2**62, "too few|step needs"),
        ("threads", -1, "threads"),
        ("vocabulary", 71, "not of a model with 71 tokens"),
        ("arena", good["arena"][:-1], "the plan's .* must be from"),
        ("arena", good["arena"].to(torch.int8), "arena must be torch.uint8"),
        ("plan", good["plan"][:-1], "the plan's"),
        ("plan", good["plan"].repeat_interleave(2)[::2], "lie without gaps"),
        ("numbers", good["numbers"][:-1], "the plan has no number"),
        ("cosine", good["cosine"][:, :8], "cosines must be"),
        ("cosine", None, "need cosines and sines"),
        ("sine", good["sine"][:5], "sines must be"),
        ("table", torch.ones(3, 5), "table of positions must be"),
    ):
        with pytest.raises(UsageError, match=message):
            ops.step(**{**good, name: value})


def test_no_plan_reaches_outside_its_arena(llama: FusedStep) -> None:
    """Every number of the plan in turn becomes what it must not be: told, or harmless, and never a crash."""
    good = arguments_of(llama)
    told = 0
    for place in range(len(good["plan"])):
        for value in (-2, -1, 0, 1, 5, 63, 2**31, 2**62, -(2**62)):
            plan = good["plan"].clone()
            plan[place] = value
            try:
                ops.step(**{**good, "plan": plan})
            except UsageError:
                told += 1
    assert told > 5 * len(good["plan"])


def test_sizes_that_overflow_are_refused(llama: FusedStep) -> None:
    good = arguments_of(llama)
    for start in (2**63 - 1, 2**63 - 3, 2**62):
        with pytest.raises(UsageError, match="too few, or of another model"):
            ops.step(**{**good, "start": start})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_are_float32_whatever_torch_makes_by_default(llama: FusedStep, dtype: torch.dtype) -> None:
    expected = llama(tokens_of(2, 5), new_cache(llama.decoder, 2))
    looked_up = llama.decoder.embedding(tokens_of(2, 5))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(llama(tokens_of(2, 5), new_cache(llama.decoder, 2)), expected)
        assert torch.equal(llama.decoder.embedding(tokens_of(2, 5)), looked_up)
        assert llama.decoder.head(torch.ones(1, 64, dtype=torch.float32)).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_parts_that_were_exchanged_are_left_to_the_modules() -> None:
    for change in (
        lambda decoder: setattr(decoder.stack.blocks[0].attention, "output", nn.Linear(64, 64)),
        lambda decoder: decoder.stack.blocks.__delitem__(1),
        lambda decoder: setattr(decoder.stack.norm, "weight", nn.Parameter(torch.ones(64), requires_grad=False)),
        lambda decoder: decoder.load_state_dict(decoder.state_dict(), assign=True),
    ):
        decoder = small_decoder()
        step = fused_step(decoder)
        assert step is not None
        assert step.takes(new_cache(decoder, 1))
        change(decoder)
        assert not step.takes(new_cache(decoder, 1))
    decoder = small_decoder()
    decoder.step = fused_step(decoder)
    decoder.stack.norm.weight.data.mul_(3)  # which torch does not count
    with torch.inference_mode():
        found = decoder(tokens_of(1, 4), cache=new_cache(decoder, 1))
        torch.testing.assert_close(found, decoder(tokens_of(1, 4)), rtol=1e-4, atol=1e-4)


def test_calls_from_two_threads_at_once_are_each_right(llama: FusedStep) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = llama(tokens_of(2, 20), new_cache(llama.decoder, 2))
    found: list[torch.Tensor] = []

    def call() -> None:
        found.extend(llama(tokens_of(2, 20), new_cache(llama.decoder, 2)) for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    torch.set_num_threads(before)
    assert len(found) == 60
    assert all(torch.equal(one, expected) for one in found)


def test_a_child_of_fork_has_workers_of_its_own(llama: FusedStep) -> None:
    arguments = arguments_of(llama) | {"threads": 2}
    expected = ops.step(**arguments)
    child = os.fork()
    if child == 0:
        same = torch.equal(ops.step(**arguments), expected)
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(ops.step(**arguments), expected)


def test_dequantised_weights_are_those_of_the_blocks() -> None:
    layer = small_decoder(layers=1).head
    assert isinstance(layer, BlockLinear)
    assert dequantise(layer.tensors()).shape == (VOCABULARY, 64)
