"""One transcription: how a window of its sound is heard, and decoded until it is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoo_whisper.decoding import Decoded, decode
from zoo_whisper.hearing import Heard, Writing, hear
from zoo_whisper.ladder import Ladder
from zoo_whisper.log_mel import LogMel, padded
from zoo_whisper.rules import Rules
from zoo_whisper.tokens import Controls


class Run:
    """One transcription: the model, the sound and the rules, and how a window of it is heard and decoded."""

    def __init__(
        self, model: Any, mel: LogMel, rules: Rules, ladder: Ladder, seed: int | None, prompt: list[int], words: bool
    ) -> None:
        self.model, self.mel, self.rules, self.ladder, self.seed = model, mel, rules, ladder, seed
        self.prompt, self.words = prompt, words
        self.known: Controls = model.controls

    def hear(self, mels: Sequence[torch.Tensor]) -> Heard:
        """Windows of the log-mel, float[bands, T] of at most 30 s each -> what the decoder hears of them."""
        mel_BCT = torch.stack([padded(mel_CT) for mel_CT in mels])
        return hear(self.model.decoder, self.model.encoder.features(mel_BCT.to(self.model.encoder.conv1.weight.device)))

    def spoken(self, heard: Heard) -> str:
        """The likeliest language of the first window."""
        writing = Writing(self.model.decoder, heard, rows=heard.windows, capacity=1)
        start = torch.full((heard.windows, 1), self.known.start, device=writing.store.device)
        logits_V = self.model.decoder.logits(writing.read(start)[0, 0])
        codes = list(self.known.languages)
        return codes[int(logits_V[[self.known.languages[code] for code in codes]].argmax())]

    def decode(self, heard: Heard, rules: Rules, prompt: Sequence[int], frames: Sequence[int]) -> list[Decoded]:
        """Every window, each beginning at a frame, at the first temperature that is good enough for it, or at the last there is."""
        results: dict[int, Decoded] = {}
        left = list(range(heard.windows))
        for temperature in self.ladder.temperatures:
            generators = self._generators([frames[window] for window in left], temperature, heard.pairs[0][0].device)
            found = decode(
                self.model, heard.chosen(left), rules, prompt=prompt, temperature=temperature, generators=generators
            )
            results.update(zip(left, found, strict=True))
            left = [window for window in left if self.ladder.fails(results[window])]
            if not left:
                break
        return [results[window] for window in range(heard.windows)]

    def _generators(self, frames: Sequence[int], temperature: float, device: torch.device) -> list[torch.Generator] | None:
        """Samples depend on the seed, the temperature and where a window begins: on nothing that was decoded before or beside it."""
        if self.seed is None or temperature == 0:
            return None
        seeds = [hash((self.seed, frame, round(1000 * temperature))) % 2**63 for frame in frames]
        return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
