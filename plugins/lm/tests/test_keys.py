"""Key maps: there and back without loss, strict, and for the files that are published."""

from pathlib import Path

import pytest
import torch
import transformers
from lm_reference import Case, batch, cases, our_logits, same_weights
from zoo_lm import bert, bloom, gpt2, llama, renaming, t5

from zoo.errors import StateMismatchError
from zoo.weights.formats.read import read_state_dict
from zoo.weights.strict_load import load_strict

CASES = cases()
BY_NAME = {case.name: case for case in CASES}
each = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@each
def test_there_and_back(case: Case) -> None:
    state = case.make_reference().state_dict()
    ours = case.from_transformers(state)
    back = case.to_transformers(ours)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert case.from_transformers(back).keys() == ours.keys()
    other = case.make_reference()
    other.load_state_dict(back, strict=True)


@each
def test_files_as_transformers_writes_them(case: Case, tmp_path: Path) -> None:
    """Ties have lost their second keys there, and Mixtral's experts lie apart."""
    reference, ours = same_weights(case)
    reference.save_pretrained(tmp_path)
    state = read_state_dict(tmp_path / "model.safetensors")
    other = case.build()
    load_strict(other, case.from_transformers(state), case.name)
    with torch.no_grad():
        assert torch.equal(our_logits(case, other.eval(), batch()), our_logits(case, ours, batch()))


@each
def test_files_that_we_write(case: Case, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    reference, ours = same_weights(case)
    reference.save_pretrained(tmp_path)
    state = {key: tensor.contiguous().clone() for key, tensor in case.to_transformers(ours.state_dict()).items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened, report = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = opened.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in reference.state_dict().items())


@each
def test_keys_too_many_and_too_few(case: Case) -> None:
    state, ours = case.make_reference().state_dict(), case.build()
    lost = next(key for key in state if "norm" in key.lower() or ".ln_" in key)
    fewer = {key: tensor for key, tensor in state.items() if key != lost}
    with pytest.raises(StateMismatchError, match=r"(?s)does not fit the model: 1 of \d+ tensors differ.*missing"):
        load_strict(ours, case.from_transformers(fewer), "the file")
    more = {**state, "surprise.weight": torch.zeros(2), lost.replace(".", ".extra_", 1): torch.zeros(3)}
    with pytest.raises(StateMismatchError, match=r"(?s)unexpected  surprise.weight \[2\]"):
        load_strict(ours, case.from_transformers(more), "the file")
    wrong = {**state, lost: torch.zeros(1)}
    with pytest.raises(StateMismatchError, match=r"shape .* \[1\], the model has"):
        load_strict(ours, case.from_transformers(wrong), "the file")


@each
def test_a_key_in_our_names_collides(case: Case) -> None:
    """It would silently take the place of what is renamed to it."""
    state = case.make_reference().state_dict()
    ours = next(key for key in case.from_transformers(state) if key.endswith("norm.weight"))
    with pytest.raises(StateMismatchError, match="two tensors are"):
        case.from_transformers({ours: torch.zeros(2), **state})


def test_a_head_that_differs_is_no_tie() -> None:
    case = BY_NAME["Llama, tied head"]
    state = case.make_reference().state_dict()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(StateMismatchError, match="unexpected  head.weight"):
        load_strict(case.build(), llama.from_transformers(state), "the file")


def test_an_embedding_that_differs_between_the_sides() -> None:
    case = BY_NAME["T5 1.0"]
    state = case.make_reference().state_dict()
    state["encoder.embed_tokens.weight"] = state["shared.weight"] + 1
    with pytest.raises(StateMismatchError, match=r"unexpected  encoder.embed_tokens.weight"):
        load_strict(case.build(), t5.from_transformers(state), "the file")


def test_published_gpt2() -> None:
    """No "transformer.", no head, and the causal masks as buffers."""
    case = BY_NAME["GPT-2"]
    state = case.make_reference().state_dict()
    published = {key.removeprefix("transformer."): tensor for key, tensor in state.items() if key != "lm_head.weight"}
    published |= {f"h.{layer}.attn.{name}": torch.ones(1) for layer in range(3) for name in ("bias", "masked_bias")}
    load_strict(case.build(), gpt2.from_transformers(published), "the file")


def test_published_bloom() -> None:
    case = BY_NAME["BLOOM"]
    state = case.make_reference().state_dict()
    published = {key.removeprefix("transformer."): tensor for key, tensor in state.items() if key != "lm_head.weight"}
    load_strict(case.build(), bloom.from_transformers(published, heads=6), "the file")
    with pytest.raises(StateMismatchError, match=r"heads=5 does not fit query_key_value of shape \[108, 36\]"):
        bloom.from_transformers(published, heads=5)


def test_published_bert() -> None:
    """`bert-base-uncased` has gamma and beta, a pooler, and the head of the second task."""
    case = BY_NAME["BERT"]
    state = case.make_reference().state_dict()
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    published = {}
    for key, tensor in state.items():
        for modern, name in old.items():
            key = key.replace(modern, name)  # noqa: PLW2901 - one of the two matches
        published[key] = tensor
    del published["cls.predictions.decoder.weight"]
    del published["cls.predictions.decoder.bias"]
    published |= {"bert.pooler.dense.weight": torch.ones(2), "cls.seq_relationship.bias": torch.ones(2)}
    ours = bert.from_transformers(published)
    load_strict(case.build(), ours, "the file")
    assert all(torch.equal(tensor, bert.from_transformers(state)[key]) for key, tensor in ours.items())


def test_features_of_bert_without_its_head() -> None:
    """A file of `BertModel` has neither "bert." nor a head; the pooler is not built."""
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    reference = transformers.BertModel(transformers.BertConfig(vocab_size=61, pad_token_id=None, **config)).eval()
    numbers = {"layers": 2, "width": 32, "heads": 4, "hidden": 48, "vocabulary": 61, "context": 512}
    ours = bert.build(**numbers, masked_head=False).eval()
    load_strict(ours, bert.from_transformers(reference.state_dict()), "the file")
    tokens_BT = torch.randint(61, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BT), reference(tokens_BT).last_hidden_state, rtol=0.0, atol=2e-5)


def test_old_rotary_buffers_and_a_bias_that_never_was() -> None:
    for name, key in (
        ("Llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("T5 1.0", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
    ):
        case = BY_NAME[name]
        state = {**case.make_reference().state_dict(), key: torch.ones(4)}
        load_strict(case.build(), case.from_transformers(state), "the file")


def test_renaming() -> None:
    table = {"a.*.b": "x.y.*", "c.*.d.*": "z.*.*"}
    one, two = torch.zeros(1), torch.ones(1)
    state = {"a.10.b.weight": one, "a.b.weight": two, "c.1.d.2.bias": two, "a.1.b.gamma": one, "c.3.d.4": one}
    renamed = renaming.rename(state, table)
    assert list(renamed) == ["x.y.10.weight", "a.b.weight", "z.1.2.bias", "a.1.b.gamma", "z.3.4"]
    assert renaming.rename(renamed, renaming.inverted(table)).keys() == state.keys()


def test_join_leaves_what_is_incomplete() -> None:
    state = {"a.0.q.weight": torch.zeros(1), "a.0.k.weight": torch.ones(1), "a.1.q.weight": torch.ones(1)}
    joined = renaming.join(state, ["a.*.q", "a.*.k"], "a.*.qk", lambda parts: torch.cat(list(parts)))
    assert set(joined) == {"a.0.qk.weight", "a.1.q.weight"}
    assert joined["a.0.qk.weight"].tolist() == [0.0, 1.0]
