"""Every kind of file in which a Whisper is published loads into ours, and computes what its own library computes."""

import pytest
import torch
import transformers
import whisper
from whisper.model import ModelDimensions

import zoo
from zoo.errors import StateMismatchError

SHAPE = {"width": 32, "heads": 2, "layers": 2, "vocabulary": 51_865}


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(1, 80, 3_000), torch.tensor([[50_258, 50_259, 50_359, 440, 1_002]])


def test_a_checkpoint_of_openai_loads(tmp_path, inputs) -> None:
    torch.manual_seed(0)
    dimensions = ModelDimensions(80, 1500, 32, 2, 2, 51_865, 128, 32, 2, 2)
    theirs = whisper.model.Whisper(dimensions).eval()
    state = {key: torch.randn(tensor.shape).mul_(0.1) for key, tensor in theirs.state_dict().items()}
    state["encoder.positional_embedding"] = theirs.state_dict()["encoder.positional_embedding"]  # which is computed
    theirs.load_state_dict(state)
    torch.save({"dims": vars(dimensions), "model_state_dict": theirs.state_dict()}, tmp_path / "tiny.pt")
    ours = zoo.build("whisper/random", weights=tmp_path / "tiny.pt")
    with torch.inference_mode():
        assert float((ours(*inputs) - theirs(*inputs)).abs().max()) < 1e-4


@pytest.mark.parametrize("with_head", [True, False])
def test_a_folder_of_hugging_face_loads(tmp_path, inputs, with_head) -> None:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=51_865, max_target_positions=128,
    )  # fmt: skip
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    (theirs if with_head else theirs.model).save_pretrained(tmp_path)
    ours = zoo.build("whisper/random", weights=tmp_path)
    mel, tokens = inputs
    with torch.inference_mode():
        wanted = theirs(input_features=mel, decoder_input_ids=tokens).logits
        assert float((ours(mel, tokens) - wanted).abs().max()) < 1e-4


def test_a_whisper_of_another_size_is_refused_with_the_difference(tmp_path) -> None:
    larger = zoo.build("whisper/random", weights=None, **{**SHAPE, "layers": 3})
    torch.save(larger.state_dict(), tmp_path / "larger.pt")
    with pytest.raises(StateMismatchError, match=r"unexpected  (encoder|decoder)\.stack\.blocks\.2"):
        zoo.build("whisper/random", weights=tmp_path / "larger.pt")
