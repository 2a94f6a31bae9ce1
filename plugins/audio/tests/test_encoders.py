"""The encoders of sound against their references on the same numbers."""

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from zoo_audio.frontend import Conv1dFrontend, Conv2dFrontend
from zoo_audio.log_mel import log_mels
from zoo_audio.tagger import from_panns
from zoo_audio.wav2vec2 import from_hugging_face

import zoo
from zoo.errors import MediaError, UsageError
from zoo.media.audio import Sound

RATE_HZ = 16_000
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 8, 8),
    "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def sound(seed, count=8_000, rate_hz=RATE_HZ):
    return Sound((0.1 * np.random.default_rng(seed).standard_normal(count)).astype(np.float32), rate_hz)


def shaken(module):
    """Random gains and biases, so that none is forgotten."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return module.eval()


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
@pytest.mark.parametrize("large", [False, True])
def test_waves_are_encoded_as_by_transformers(kind, large, tmp_path) -> None:
    changes = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True} if large else {}
    config, model = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
    }[kind]
    theirs = shaken(model(config(**TINY, **changes)))
    variant = {"norm": "layer", "norm_first": True, "convolution_bias": True} if large else {}
    prefix = f"{kind}." if large else ""  # a model with a head names its body, the bare one does not
    named = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({**named, "lm_head.weight": torch.zeros(3, 32)}, tmp_path / "pytorch_model.bin")
    ours = zoo.build("audio/wav2vec2-tiny", weights=tmp_path, **variant)
    sounds = [sound(0, 9_000), sound(1, 16_000), sound(2, 700)]
    encoded = ours(ours.preprocess(sounds))
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for row, one in enumerate(sounds):
        inputs = extract(one.samples, sampling_rate=RATE_HZ, return_tensors="pt").input_values
        wanted = theirs(inputs).last_hidden_state[0]
        assert int(encoded.mask_BT[row].sum()) == len(wanted)
        found = encoded.tokens_BTD[row, : len(wanted)]
        assert float((found - wanted).detach().abs().max()) < 2e-5
        assert float((encoded.pooled_BD[row] - wanted.mean(0)).detach().abs().max()) < 2e-5
    ours.zero_grad()
    ours(ours.preprocess(sounds[:1])).tokens_BTD.square().mean().backward()
    theirs(extract(sounds[0].samples, sampling_rate=RATE_HZ, return_tensors="pt").input_values).last_hidden_state.square().mean().backward()  # fmt: skip
    mine = ours.encoder.transformer.layers[1].feed_forward.output_dense.weight.grad
    reference = theirs.encoder.layers[1].feed_forward.output_dense.weight.grad
    assert float((mine - reference).abs().max()) < 1e-4 * float(reference.abs().max())


def test_the_base_model_holds_what_transformers_base_model_holds() -> None:
    theirs = transformers.HubertModel(transformers.HubertConfig()).state_dict()
    ours = zoo.build("audio/hubert-base", weights=None).state_dict()
    renamed = from_hugging_face(theirs)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {name: tensor.shape for name, tensor in ours.items()}


def panns(ours):
    """The layers of PANNs' Cnn10 that `ours` holds, in the order and by the formulas of its forward, on one log-mel float[T, bands]."""

    def run(mel_TC):
        maps = ours.bn0(mel_TC.T[None, ..., None]).transpose(1, 3)
        for block in ours.blocks:
            maps = torch.relu(block.bn1(block.conv1(maps)))
            maps = nn.functional.avg_pool2d(torch.relu(block.bn2(block.conv2(maps))), 2)
        frames = maps.mean(3)
        return torch.relu(ours.fc1(frames.max(2).values + frames.mean(2)))[0]

    return run


def test_the_tagger_is_what_panns_computes_whatever_is_beside_it() -> None:
    ours = shaken(zoo.build("audio/cnn-tiny", weights=None))
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    sounds = [sound(0, 20_000, 32_000), sound(1, 64_000, 32_000), sound(2, 5_000, 32_000)]
    mel_BTC, mask_BT = ours.preprocess(sounds)
    encoded = ours((mel_BTC, mask_BT))
    reference = panns(ours)
    for row, mask in enumerate(mask_BT):
        assert torch.allclose(encoded.pooled_BD[row], reference(mel_BTC[row][mask]), atol=1e-5)


def test_panns_names_are_ours() -> None:
    ours = zoo.build("audio/cnn10", weights=None).state_dict()
    published = {
        f"conv_block{int(name[7]) + 1}{name[8:]}" if name.startswith("blocks.") else name: tensor
        for name, tensor in ours.items()
    }
    published |= {"logmel_extractor.melW": torch.zeros(513, 64), "fc_audioset.weight": torch.zeros(527, 512)}
    published |= {"spectrogram_extractor.stft.conv_real.weight": torch.zeros(1)}
    assert from_panns(published).keys() == ours.keys()
    assert "conv_block4.bn2.running_var" in published


def test_a_tagger_has_the_labels_it_is_given() -> None:
    ours = zoo.build("audio/cnn-tiny", weights=None, labels=["bell", "dog"])
    assert ours.logits(ours.preprocess([sound(0), sound(1)])).shape == (2, 2)
    bare = zoo.build("audio/cnn-tiny", weights=None)
    with pytest.raises(UsageError, match=r"this tagger has no labels of its own: give examples \(--shots\)"):
        bare.logits(bare.preprocess([sound(0)]))
    with pytest.raises(UsageError, match="9 halvings of 64 bands leave nothing: give 1 to 6 channels"):
        zoo.build("audio/cnn-tiny", weights=None, channels=[8] * 9)


def test_the_log_mel_is_torchaudios() -> None:
    from torchaudio.transforms import MelSpectrogram

    numbers = {"sample_rate_hz": RATE_HZ, "bands": 40, "window": 400, "hop": 160, "lowest_hz": 50, "highest_hz": 7_000}
    theirs = MelSpectrogram(
        RATE_HZ, n_fft=400, hop_length=160, f_min=50, f_max=7_000, n_mels=40, norm="slaney", mel_scale="slaney"
    )
    sounds = [sound(0, 5_000), sound(1, 1), sound(2, 16_000)]
    mel_BTC, mask_BT = log_mels(sounds, numbers)
    assert mask_BT.sum(1).tolist() == [32, 2, 101]
    for row in (0, 2):
        wanted = theirs(torch.from_numpy(sounds[row].samples)).clamp(min=1e-10).log10().T
        assert float((mel_BTC[row][mask_BT[row]] - wanted).abs().max()) < 1e-4
    assert not mel_BTC[0, 32:].any()


@pytest.mark.parametrize(("frontend", "factor"), [(Conv2dFrontend(bands=80, channels=4, width=16), 4), (Conv1dFrontend(bands=80, width=16), 2)])  # fmt: skip
def test_frontends_shorten_time_and_know_nothing_of_padding(frontend, factor) -> None:
    mel_BTC = torch.randn(2, 50, 80)
    mask_BT = torch.arange(50) < torch.tensor([[50], [37]])
    mel_BTC = mel_BTC * mask_BT[:, :, None]
    features, mask = frontend(mel_BTC, mask_BT)
    assert mask.sum(1).tolist() == [-(-50 // factor), -(-37 // factor)]
    alone, _ = frontend(mel_BTC[1:, :37], mask_BT[1:, :37])
    assert torch.allclose(features[1:, : alone.shape[1]], alone, atol=1e-6)
    further, _ = frontend(torch.cat((mel_BTC, torch.zeros(2, 20, 80)), 1), nn.functional.pad(mask_BT, (0, 20)))
    assert torch.allclose(further[:, : features.shape[1]] * mask[:, :, None], features * mask[:, :, None], atol=1e-6)


def test_the_level_of_a_recording_is_not_heard() -> None:
    ours = zoo.build("audio/conv2d-tiny", weights=None)
    loud, quiet = sound(0), Sound(sound(0).samples / 100, RATE_HZ)
    encoded = ours(ours.preprocess([loud, quiet]))
    assert torch.allclose(encoded.pooled_BD[0], encoded.pooled_BD[1], atol=1e-4)


@pytest.mark.parametrize("name", ["conv2d-tiny", "conv1d-tiny", "cnn-tiny", "wav2vec2-tiny", "silero-vad"])
def test_what_is_no_sound_or_too_long_is_refused(name) -> None:
    ours = zoo.build(f"audio/{name}", weights=None)
    with pytest.raises(UsageError, match=r"an encoder of sounds takes zoo.Sound, item 1 is ndarray"):
        ours.preprocess([sound(0), np.zeros(5)])
    with pytest.raises(MediaError, match="takes at most"):
        ours.preprocess([Sound(np.zeros(1_000 * 700, np.float32), 1_000)])
    with pytest.raises(UsageError, match=r"width must be an even multiple of heads, at least 4, got width=33 and heads=4"):
        zoo.build("audio/conv1d-tiny", weights=None, width=33)
