"""The tiny models: built through their cards, they read, write and encode."""

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_lm
from lm_reference import cases, same_weights
from safetensors.torch import save_file
from zoo_lm.bytes import byte_tokenizer

import zoo
from zoo.decoding.generation import generate
from zoo.errors import UsageError, WeightsMissingError
from zoo.models.contracts import Decoder, Encoder, Tokenizer
from zoo.nn.tokenizer import ByteTokenizer

CARDS: list[dict[str, Any]] = tomllib.loads((Path(zoo_lm.__file__).parent / "zoo.toml").read_text())["card"]
DECODERS = [card["name"] for card in CARDS if card["kind"] == "decoder"]


@pytest.mark.parametrize("card", CARDS, ids=[card["name"] for card in CARDS])
def test_cards_say_what_is_built(card: dict[str, Any]) -> None:
    module = zoo.build(f"lm/{card['name']}", weights=None)
    assert sum(parameter.numel() for parameter in module.parameters()) == card["parameters"]
    assert isinstance(module, Decoder if card["kind"] == "decoder" else Encoder)
    assert card["licence"] == "Apache-2.0"
    with pytest.raises(WeightsMissingError, match="--weights none"):
        zoo.build(f"lm/{card['name']}")


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_generate(name: str) -> None:
    torch.manual_seed(0)
    decoder: Any = zoo.build(f"lm/{name}", weights=None)
    assert isinstance(decoder.tokenizer, Tokenizer)
    prompts = [decoder.tokenizer.encode(text) for text in ("", "Hello", "a much longer prompt, ünïcode")]
    together = generate(decoder, prompts, max_tokens=8)
    alone = [generate(decoder, [prompt], max_tokens=8)[0] for prompt in prompts]
    assert together == alone
    assert Counter(answer.finish for answer in together).keys() <= {"length", "end"}


def test_weights_of_a_local_file(tmp_path: Path) -> None:
    """The names of transformers are those of a local file, too: the card says which map reads them."""
    case = next(case for case in cases() if case.name == "GPT-2")
    reference, ours = same_weights(case)
    state = {key: tensor.contiguous() for key, tensor in reference.state_dict().items() if key != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    sizes = {"layers": 3, "width": 32, "heads": 4, "hidden": 48, "vocabulary": 61, "context": 64}
    decoder = zoo.build("lm/gpt2-tiny", weights=tmp_path / "model.safetensors", **sizes)
    tokens_BT = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(decoder(tokens_BT), ours(tokens_BT))
    assert decoder.tokenizer is None  # bytes would mean nothing to it


def test_the_encoder() -> None:
    encoder: Any = zoo.build("lm/bert-tiny", weights=None)
    texts = ["", "hello", "x" * 300, "ünïcode 🐕"]
    ids_BT, mask_BT = encoder.preprocess(texts)
    assert mask_BT.sum(1).tolist() == [2, 7, 128, 2 + len("ünïcode 🐕".encode())]
    with torch.no_grad():
        encoded = encoder((ids_BT, mask_BT))
        assert encoded.tokens_BTD.shape == (4, 128, 32)
        assert not encoded.tokens_BTD[~mask_BT].any()
        for row, text in enumerate(texts):
            alone = encoder(encoder.preprocess([text]))
            torch.testing.assert_close(alone.pooled_BD[0], encoded.pooled_BD[row], rtol=0.0, atol=1e-5)
    assert encoder(encoder.preprocess([])).pooled_BD.shape == (0, 32)
    for items, message in (("text", r"pass \[text\]"), ([3], "got int"), (["\ud800"], "lone surrogate")):
        with pytest.raises(UsageError, match=message):
            encoder.preprocess(items)


def test_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocabulary, tokenizer.start_id, tokenizer.end_ids, tokenizer.chat) == (258, 256, (257,), None)
    for text in ("", "plain", "ünïcode 🐕 漢字", "\0\n\r", "<|end|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode([256, *ids, 257]) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode([0xC3, 0x28, 0xFF]) == "\ufffd(\ufffd"
    assert tokenizer.token_bytes(256) == tokenizer.token_bytes(257) == b""
    with pytest.raises(UsageError, match="from 0 to 257, got 258"):
        tokenizer.token_bytes(258)
    with pytest.raises(UsageError, match="must be a str, got bytes"):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lone surrogate"):
        tokenizer.encode("\udc80")
    assert byte_tokenizer(259) is None
