"""When a window is good enough, and when it is silence (Radford et al. 2022, arXiv:2212.04356, section 4.5)."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.api import UsageError
from zoo_whisper.decoding import Decoded

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """When a window is tried again at the next temperature, and when it is silence instead.

    A window fails when its text shrinks to less than 1 / compression_ratio_threshold in zlib, or its average log-probability is
    below logprob_threshold. It is silence when the probability of no speech is above no_speech_threshold and it is improbable. None
    switches a rule off.
    """

    temperatures: tuple[float, ...] = TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6

    def __post_init__(self) -> None:
        if not self.temperatures or any(not value >= 0 for value in self.temperatures):
            raise UsageError(f"temperature is one number or several, none below 0, got {self.temperatures}")

    def fails(self, result: Decoded) -> bool:
        improbable = self._improbable(result)
        if self._silent(result) and improbable:
            return False
        repeats = (
            self.compression_ratio_threshold is not None and result.compression_ratio > self.compression_ratio_threshold
        )
        return repeats or improbable

    def skips(self, result: Decoded) -> bool:
        probable = self.logprob_threshold is not None and result.average_log_probability > self.logprob_threshold
        return self._silent(result) and not probable

    def _silent(self, result: Decoded) -> bool:
        return self.no_speech_threshold is not None and result.no_speech_probability > self.no_speech_threshold

    def _improbable(self, result: Decoded) -> bool:
        return self.logprob_threshold is not None and result.average_log_probability < self.logprob_threshold
