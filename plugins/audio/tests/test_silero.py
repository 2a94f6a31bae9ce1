"""Silero VAD against the module in its own wheel, piece by piece."""

import zipfile

import numpy as np
import pytest
import torch

import zoo
from zoo.errors import WeightsMissingError, ZooError
from zoo.media.audio import Sound, open_audio, open_reader
from zoo.tasks.voice_activity import open_detector, speech_spans
from zoo.weights.stores import fetch_wheel

WHEEL = ("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8")
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def ours():
    try:
        return zoo.build("audio/silero-vad")
    except WeightsMissingError as missing:
        pytest.skip(f"needs the published weights: {str(missing).splitlines()[0][:80]} (zoo fetch audio/silero-vad)")


@pytest.fixture(scope="module")
def samples():
    from pathlib import Path

    speech = open_audio(
        Path(zoo.__file__).parent / "cli" / "demo" / "sounds" / "sense_and_sensibility.flac", sample_rate_hz=RATE_HZ
    )
    quiet = 0.001 * np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32)
    return torch.from_numpy(np.concatenate((quiet, speech.samples, quiet))[: 512 * 340])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.load, which is how the reference is published
def test_every_piece_is_as_in_the_published_module(ours, samples, tmp_path) -> None:
    try:
        wheel = fetch_wheel(*WHEEL)
    except ZooError as error:
        pytest.skip(f"needs the wheel of silero-vad 6.2.3: {str(error)[:80]}")
    with zipfile.ZipFile(wheel) as archive:
        published = archive.extract("silero_vad/data/silero_vad.jit", tmp_path)
    theirs = torch.jit.load(published).eval()
    same = zoo.build("audio/silero-vad", weights=None)
    same.load_state_dict(of_the_module(theirs))  # its numbers are not those of the safetensors file beside it
    with torch.inference_mode():
        wanted = torch.cat([theirs(piece[None], RATE_HZ)[0] for piece in samples.split(512)])
        found, _ = same.activity(samples)
    assert float((found - wanted).abs().max()) < 1e-4
    assert float(found.max()) > 0.99


def of_the_module(module):
    """The numbers of the TorchScript module, by our names."""
    names = {"stft.forward_basis_buffer": "spectrum.weight", "decoder.decoder.2.bias": "speaks.bias"}
    names |= {f"decoder.rnn.{name}": f"lstm.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    state = {}
    for key, tensor in module._model.state_dict().items():
        if key.startswith("encoder."):
            _, number, _, parameter = key.split(".")
            state[f"convolutions.{number}.{parameter}"] = tensor
        elif key == "decoder.decoder.2.weight":
            state["speaks.weight"] = tensor[:, :, 0]
        else:
            state[names[key]] = tensor
    return state


def test_blocks_give_what_the_whole_gives(ours, samples) -> None:
    with torch.inference_mode():
        whole, _ = ours.activity(samples)
        state, pieces = None, []
        for block in samples.split(512 * 37):
            found, state = ours.activity(block, state)
            pieces.append(found)
    assert torch.allclose(torch.cat(pieces), whole, atol=1e-5)


def test_speech_is_found_between_silences(ours, samples) -> None:
    with open_reader(Sound(samples.numpy(), RATE_HZ)) as reader:
        spans = speech_spans(reader, open_detector("audio/silero-vad"))
    assert spans[0][0] == pytest.approx(2.0, abs=0.6)
    assert spans[-1][1] == pytest.approx(9.1, abs=0.7)
    assert sum(end - start for start, end in spans) > 5
