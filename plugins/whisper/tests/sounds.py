"""Sounds for the tests: a sentence that somebody reads, what can be made of it, and what is no speech at all."""

import io
from pathlib import Path

import numpy as np
import soundfile
import torch

import zoo
from zoo.media.audio import Sound, open_audio
from zoo.media.resampling import resample

RATE_HZ = 16_000
READER = Path(zoo.__file__).parent / "cli" / "demo" / "sounds" / "sense_and_sensibility.flac"


def speech(duration_s=None):
    """The sentence, again and again where more is wanted."""
    samples = open_audio(READER, sample_rate_hz=RATE_HZ).samples
    if duration_s is None:
        return samples
    return np.resize(samples, int(duration_s * RATE_HZ))


def noise(duration_s, loudness=0.05):
    return (loudness * np.random.default_rng(0).standard_normal(int(duration_s * RATE_HZ))).astype(np.float32)


def music(duration_s):
    """Chords that change every half second."""
    times = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    pitches = 220 * 2 ** (np.array([0, 5, 7, 3])[(2 * times).astype(int) % 4] / 12)
    phase = 2 * np.pi * np.cumsum(pitches) / RATE_HZ
    decay = np.exp(-3 * (times % 0.5))
    return (0.1 * decay * sum(np.sin(phase * ratio) for ratio in (1, 1.25, 1.5, 2))).astype(np.float32)


def stereo_file():
    """The bytes of a wav at 48 kHz: the sentence on the left, half as loud and a little later on the right."""
    left = resample(torch.from_numpy(speech()), RATE_HZ, 48_000).numpy()
    right = 0.5 * np.concatenate((np.zeros(480, np.float32), left[:-480]))
    file = io.BytesIO()
    soundfile.write(file, np.stack((left, right), 1), 48_000, format="WAV", subtype="PCM_24")
    return file.getvalue()


def cases():
    """Name -> a Sound, or the bytes of a file: what recordings are like."""
    return {
        "speech": Sound(speech(), RATE_HZ),
        "silence": Sound(np.zeros(5 * RATE_HZ, np.float32), RATE_HZ),
        "noise": Sound(noise(6), RATE_HZ),
        "music": Sound(music(8), RATE_HZ),
        "clipped": Sound(np.clip(20 * speech(), -1, 1), RATE_HZ),
        "0.2 s": Sound(speech(0.2), RATE_HZ),
        "29.9 s": Sound(speech(29.9), RATE_HZ),
        "30.1 s": Sound(speech(30.1), RATE_HZ),
        "stereo 48 kHz": stereo_file(),
        "8 kHz": Sound(speech()[::2].copy(), 8_000),
        "speech in noise": Sound(speech() + noise(len(speech()) / RATE_HZ, 0.02)[: len(speech())], RATE_HZ),
        "pauses": Sound(np.concatenate((np.zeros(40_000, np.float32), speech(), noise(12, 0.001), speech())), RATE_HZ),
    }
