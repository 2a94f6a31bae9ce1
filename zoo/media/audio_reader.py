"""A sound that is read piece by piece, in constant memory, at the rate that the reader asks for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zoo.media.audio_decoding import Decoder
from zoo.media.resampling import Samples, resampled_blocks


class AudioReader:
    """A sound that is read piece by piece: `read(start, count)` gives mono samples at `sample_rate_hz`.

    Reading goes forward; a step back before what is still held decodes again from the start. Made by `open_reader`, and closed by it.
    """

    def __init__(self, decoder: Decoder, sample_rate_hz: int) -> None:
        self.label = decoder.label
        self.sample_rate_hz = sample_rate_hz
        self._decoder = decoder
        self._held = np.empty(0, np.float32)
        self._start = 0  # where in the sound what is held begins
        self._blocks = self._resampled()

    @property
    def duration_s(self) -> float:
        """How long the sound is, once it was read to its end; before, what it says, 0 where it says nothing."""
        return self._decoder.duration_s

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the sound and changed how it is read, as far as it was read; each was logged once."""
        return tuple(self._decoder.warnings)

    def read(self, start: int, count: int) -> Samples:
        """Samples `start` to `start + count`, float32[N]; N is less than `count` only where the sound ends."""
        if start < self._start:
            self.rewind()
        pieces = [self._held]
        reached = self._start + len(self._held)
        while reached < start + count:
            block = next(self._blocks, None)
            if block is None:
                break
            pieces.append(block)
            reached += len(block)
            if reached <= start:  # nothing of this is wanted
                pieces, self._start = [], reached
        held = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
        skipped = min(max(start - self._start, 0), len(held))
        self._held, self._start = held[skipped:], self._start + skipped
        return self._held[:count]

    def blocks(self) -> Iterator[Samples]:
        """All of it from the start, block after block; `read` begins anew afterwards."""
        self.rewind()
        yield from self._blocks
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self._decoder.rewind()
        self._held, self._start = np.empty(0, np.float32), 0
        self._blocks = self._resampled()

    def _resampled(self) -> Iterator[Samples]:
        blocks, rate_hz = self._decoder.blocks(), self._decoder.rate_hz
        return blocks if rate_hz == self.sample_rate_hz else resampled_blocks(blocks, rate_hz, self.sample_rate_hz)
