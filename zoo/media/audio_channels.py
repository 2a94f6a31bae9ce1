"""Channels -> one. They are averaged; where that would silence them, the louder one is taken."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.media.resampling import Samples

CANCELLED = 0.1  # of the power that channels which have nothing in common keep when they are averaged
_SILENCE = 1e-8  # power; -80 dB of full scale


class Mixer:
    """Averages the channels of one sound, a second at a time, and remembers which channel it took where they cancel.

    One channel wired the wrong way round is the usual cause: what both have in common is then gone from the average.
    """

    def __init__(self, rate_hz: int) -> None:
        self.window = rate_hz
        self.taken: int | None = None

    def mix(self, block_NC: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[Samples, int | None]:
        """float32[N, C] -> float32[N], and at which sample the channels begin to cancel, None where they do not.

        Blocks begin at whole windows, so that their size changes nothing.
        """
        if block_NC.shape[1] == 1:
            return block_NC[:, 0].copy(), None
        mono, first = block_NC.mean(1), None
        for start in range(0, len(mono), self.window):
            piece_NC, mixed = block_NC[start : start + self.window], mono[start : start + self.window]
            with np.errstate(over="ignore", invalid="ignore"):  # wild samples are refused afterwards
                powers_C = np.einsum("nc,nc->c", piece_NC, piece_NC)
                cancelled = len(powers_C) ** 2 * np.dot(mixed, mixed) < CANCELLED * powers_C.sum()
            loudest = int(powers_C.argmax())
            if not cancelled or not powers_C[loudest] > _SILENCE * len(mixed):
                continue
            if self.taken is None or powers_C[self.taken] < powers_C[loudest] / 4:  # else it would change to and fro
                self.taken = loudest
            mixed[:] = piece_NC[:, self.taken]
            first = start if first is None else first
        return mono, first
