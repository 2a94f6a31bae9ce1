"""The sentence encoder against its reference implementation, against padding, and against published numbers."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_text
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from torch.nn.functional import normalize
from zoo_text.minilm import from_bert_keys, sentence_encoder

from zoo.errors import UsageError
from zoo.models.encoded import Encoded
from zoo.weights.delivery import fetch

TINY = {"layers": 2, "width": 32, "heads": 4, "hidden": 64, "vocabulary": 50, "positions": 24, "max_tokens": 16}
PUBLISHED = TINY | {"layers": 6, "width": 384, "heads": 12, "hidden": 1536}
PUBLISHED |= {"vocabulary": 30522, "positions": 512, "max_tokens": 256}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "happy", "person", "dog", "##s", "sunny", "day"]
TEXTS = ["a happy person", "", "dogs", "a sunny day a sunny day a sunny day", "unheard of", "a"]
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    """A word-piece tokenizer of eleven entries that, like the published one, is told to pad to a fixed length."""
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=12)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def tiny(tokenizer_path: Path) -> Any:
    torch.manual_seed(0)
    return sentence_encoder(**TINY, tokenizer_path=tokenizer_path).eval()


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    """role -> path of the published files (fetched once into the cache)."""
    return {file.role: file.path for file in fetch("text/all-minilm-l6-v2")}


@pytest.fixture(scope="module")
def published(files: dict[str, Path]) -> Any:
    encoder = sentence_encoder(**PUBLISHED, tokenizer_path=files["tokenizer"]).eval()
    encoder.load_state_dict(from_bert_keys(load_file(files["model"])))
    return encoder


def reference(numbers: dict[str, int]) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=numbers["vocabulary"],
        hidden_size=numbers["width"],
        num_hidden_layers=numbers["layers"],
        num_attention_heads=numbers["heads"],
        intermediate_size=numbers["hidden"],
        max_position_embeddings=numbers["positions"],
    )
    torch.manual_seed(3)
    return transformers.BertModel(config).eval()


def random_inputs(batch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths_B = torch.randint(2, count + 1, (batch,), generator=generator)
    lengths_B[0] = count
    ids_BT = torch.randint(0, TINY["vocabulary"], (batch, count), generator=generator)
    return ids_BT, torch.arange(count) < lengths_B[:, None]


def reference_tokens(model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    tokens_BTD: torch.Tensor = model(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state
    return tokens_BTD


def masked_mean(tokens_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens, written the long way."""
    return torch.stack([tokens_TD[mask_T].mean(0) for tokens_TD, mask_T in zip(tokens_BTD, mask_BT, strict=True)])


def test_forward_equals_the_reference() -> None:
    model = reference(TINY)
    ours = sentence_encoder(**TINY).eval()
    ours.load_state_dict(from_bert_keys(model.state_dict()))
    ids_BT, mask_BT = random_inputs(5, 17)
    with torch.no_grad():
        expected_BTD = reference_tokens(model, ids_BT, mask_BT)
        encoded = ours((ids_BT, mask_BT))
    assert isinstance(encoded, Encoded)
    torch.testing.assert_close(encoded.tokens_BTD[mask_BT], expected_BTD[mask_BT], **CLOSE)
    torch.testing.assert_close(encoded.pooled_BD, masked_mean(expected_BTD, mask_BT), **CLOSE)
    assert not encoded.tokens_BTD[~mask_BT].any()


def test_gradients_equal_the_reference() -> None:
    """In float64: the gradient of the small random embeddings is of order 100, where float32 is coarser than 1e-5."""
    model = reference(TINY).double()
    ours = sentence_encoder(**TINY).eval().double()
    ours.load_state_dict(from_bert_keys(model.state_dict()))
    ids_BT, mask_BT = random_inputs(5, 17)
    target_BD = torch.randn(5, TINY["width"], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected_BTD = reference_tokens(model, ids_BT, mask_BT)
    (masked_mean(expected_BTD, mask_BT) * target_BD).sum().backward()
    (ours((ids_BT, mask_BT)).pooled_BD * target_BD).sum().backward()
    gradients = from_bert_keys({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    gradients["words.weight"][0] = ours.words.weight.grad[0]  # the reference freezes the padding piece
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() < CLOSE["atol"], name


def test_a_batch_is_its_singles(tiny: Any) -> None:
    with torch.no_grad():
        together = tiny(tiny.preprocess(TEXTS))
        for number, text in enumerate(TEXTS):
            alone = tiny(tiny.preprocess([text]))
            length = alone.mask_BT.shape[1]
            assert together.mask_BT[number].sum() == length
            torch.testing.assert_close(together.pooled_BD[number], alone.pooled_BD[0], **CLOSE)
            torch.testing.assert_close(together.tokens_BTD[number, :length], alone.tokens_BTD[0], **CLOSE)


def test_padding_changes_nothing_whatever_lies_under_it(tiny: Any) -> None:
    ids_BT, mask_BT = tiny.preprocess(TEXTS)
    wide_BT = torch.nn.functional.pad(ids_BT, (0, 7), value=5)
    wide_BT[:, : ids_BT.shape[1]][~mask_BT] = 9
    wide_mask_BT = torch.nn.functional.pad(mask_BT, (0, 7))
    with torch.no_grad():
        narrow, wide = tiny((ids_BT, mask_BT)), tiny((wide_BT, wide_mask_BT))
    torch.testing.assert_close(wide.pooled_BD, narrow.pooled_BD, **CLOSE)
    torch.testing.assert_close(wide.tokens_BTD[wide_mask_BT], narrow.tokens_BTD[mask_BT], **CLOSE)


def test_left_padding_shifts_positions_only(tiny: Any) -> None:
    """The mask need not be a prefix; the position of a token is its column."""
    tiny.positions.weight.data.zero_()
    ids_BT, mask_BT = tiny.preprocess(["a happy person"])
    left = (torch.nn.functional.pad(ids_BT, (3, 0)), torch.nn.functional.pad(mask_BT, (3, 0)))
    with torch.no_grad():
        torch.testing.assert_close(tiny(left).pooled_BD, tiny((ids_BT, mask_BT)).pooled_BD, **CLOSE)


def test_a_row_without_tokens_is_zero_and_spoils_no_gradient(tiny: Any) -> None:
    ids_BT, mask_BT = tiny.preprocess(["a dog", "a happy dog"])
    mask_BT[0] = False
    encoded = tiny((ids_BT, mask_BT))
    assert not encoded.pooled_BD[0].any()
    encoded.pooled_BD.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in tiny.parameters())


def test_no_texts_at_all(tiny: Any) -> None:
    encoded = tiny(tiny.preprocess([]))
    assert encoded.tokens_BTD.shape == (0, 0, 32)
    assert encoded.pooled_BD.shape == (0, 32)


def test_preprocess_pads_to_the_longest_and_cuts(tiny: Any) -> None:
    ids_BT, mask_BT = tiny.preprocess(["a dogs", "", "day " * 100])
    assert ids_BT.shape == mask_BT.shape == (3, TINY["max_tokens"])
    assert ids_BT[0].tolist() == [1, 4, 7, 8, 2] + [0] * 11
    assert mask_BT.sum(1).tolist() == [5, 2, 16]
    assert ids_BT[2].tolist() == [1] + [10] * 14 + [2]
    assert ids_BT.dtype == torch.int64


def test_a_thousand_texts(tiny: Any) -> None:
    ids_BT, mask_BT = tiny.preprocess(("a happy dog", "") * 500)
    assert ids_BT.shape == (1000, 5)
    with torch.no_grad():
        pooled_BD = tiny((ids_BT, mask_BT)).pooled_BD
    torch.testing.assert_close(pooled_BD, pooled_BD[:2].repeat(500, 1), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_formats(tiny: Any, dtype: torch.dtype) -> None:
    inputs = tiny.preprocess(TEXTS)
    with torch.no_grad():
        expected_BD = tiny(inputs).pooled_BD
        encoded = tiny.to(dtype)(inputs)
    assert encoded.tokens_BTD.dtype == encoded.pooled_BD.dtype == dtype
    assert torch.cosine_similarity(encoded.pooled_BD.double(), expected_BD.double()).min() > 0.999


def test_what_is_not_a_text_is_refused(tiny: Any) -> None:
    with pytest.raises(UsageError, match=r"a text must be a str, item 1 is bytes"):
        tiny.preprocess(["a", b"a"])
    with pytest.raises(UsageError, match=r"a text must be a str, item 0 is tuple"):
        tiny.preprocess([("a", "dog")])
    with pytest.raises(UsageError, match=r"got a single str: pass \[text\]"):
        tiny.preprocess("a dog")
    with pytest.raises(UsageError, match=r"valid Unicode, got a lone surrogate"):
        tiny.preprocess(["a", "dog \ud83d"])


def test_without_a_tokenizer_a_token_is_a_byte() -> None:
    encoder = sentence_encoder(**{**TINY, "vocabulary": 300, "positions": 16, "max_tokens": 12}).eval()
    ids_BT, mask_BT = encoder.preprocess(["cat", "", "é", "a text that is cut"])
    assert mask_BT.sum(1).tolist() == [5, 2, 4, 12]
    assert len(set(ids_BT[0].tolist()[1:4])) == 3


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(UsageError, match=r"built without weights.*`zoo fetch text/all-minilm-l6-v2`.*tokenizer_path"):
        sentence_encoder(**TINY).preprocess(["a dog"])


def test_forward_refuses_what_it_cannot_read(tiny: Any) -> None:
    ids_BT, mask_BT = random_inputs(2, 25)
    with pytest.raises(UsageError, match="the model has 24 positions, got texts of 25 tokens"):
        tiny((ids_BT, mask_BT))
    with pytest.raises(UsageError, match=r"mask bool\[B, T\].*torch\.int64\[2, 9\] and torch\.int64\[2, 9\]"):
        tiny((ids_BT[:, :9], mask_BT[:, :9].long()))
    with pytest.raises(UsageError, match=r"torch\.int64\[2, 9\] and torch\.bool\[2, 8\]"):
        tiny((ids_BT[:, :9], mask_BT[:, :8]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width must be a multiple of heads, got width=32 and heads=5"),
        ({"max_tokens": 25}, "max_tokens must be at most positions=24, got 25"),
        ({"max_tokens": 2}, "max_tokens must exceed the 2 that .* adds to each text, got 2"),
        ({"vocabulary": 10}, "has 11 entries, the model has vocabulary=10: it is another model's"),
    ],
)
def test_numbers_that_contradict_each_other(tokenizer_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sentence_encoder(**{**TINY, **change}, tokenizer_path=tokenizer_path)


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"must be a readable tokenizer\.json, got .*tokenizer\.json \("):
        sentence_encoder(**TINY, tokenizer_path=path)


def test_from_bert_keys_drops_only_what_is_no_parameter() -> None:
    state = {
        "embeddings.position_ids": torch.zeros(1),
        "pooler.dense.weight": torch.zeros(1),
        "pooler.dense.bias": torch.zeros(1),
        "embeddings.LayerNorm.weight": torch.zeros(1),
        "encoder.layer.11.attention.output.dense.bias": torch.zeros(1),
        "encoder.layer.3.output.dense.bias": torch.zeros(1),
        "encoder.layer.3.crossattention.self.query.bias": torch.zeros(1),
        "cls.predictions.bias": torch.zeros(1),
    }
    assert list(from_bert_keys(state)) == [
        "norm.weight",
        "blocks.11.attention_output.bias",
        "blocks.3.narrow.bias",
        "encoder.layer.3.crossattention.self.query.bias",
        "cls.predictions.bias",
    ]


def test_the_manifest_tells_the_truth() -> None:
    cards = tomllib.loads(Path(zoo_text.__file__).with_name("zoo.toml").read_text())["card"]
    assert [card["name"] for card in cards] == ["all-minilm-l6-v2", "minilm-tiny"]
    for card in cards:
        assert card["build"] == f"{sentence_encoder.__module__}:{sentence_encoder.__name__}"
        with torch.device("meta"):
            encoder: Any = sentence_encoder(**card["variant"])
        assert sum(parameter.numel() for parameter in encoder.parameters()) == card["parameters"]
        assert encoder.words.embedding_dim == card["tokens"]["width"]
    assert cards[0]["weights"][0]["keys"] == f"{from_bert_keys.__module__}:{from_bert_keys.__name__}"
    assert cards[0]["variant"] == PUBLISHED


def test_published_weights_equal_the_reference(published: Any, files: dict[str, Path]) -> None:
    model = reference(PUBLISHED)
    model.load_state_dict(load_file(files["model"]), strict=False)
    texts = ["That is a happy person", "", "Ünïcode, emoji 🐕 and 漢字", "a much longer sentence " * 20]
    ids_BT, mask_BT = published.preprocess(texts)
    with torch.no_grad():
        expected_BTD = reference_tokens(model, ids_BT, mask_BT)
        encoded = published((ids_BT, mask_BT))
    torch.testing.assert_close(encoded.tokens_BTD[mask_BT], expected_BTD[mask_BT], **CLOSE)
    torch.testing.assert_close(encoded.pooled_BD, masked_mean(expected_BTD, mask_BT), **CLOSE)


def test_published_similarities(published: Any) -> None:
    """The example of the published model card."""
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    with torch.no_grad():
        unit_BD = normalize(published(published.preprocess(texts)).pooled_BD, dim=-1)
    assert (unit_BD[1:] @ unit_BD[0]).tolist() == pytest.approx([0.695, 0.943, 0.257], abs=6e-4)
