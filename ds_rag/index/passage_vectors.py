"""The vectors of passages as constants: looked up by number, where training does not embed them.

Shape legend: n passages of a part, N of the passage table, B of one look-up, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Part = tuple[np.ndarray, np.ndarray]  # (numbers_n, vectors_nD float32), perhaps memory-mapped


class PassageVectors:
    """Vectors of all passages of a run. Empty until `fill`; parts that are memory-mapped stay on the disk."""

    def __init__(self, parts: Sequence[Part] = ()):
        self.fill(parts)

    def __len__(self) -> int:
        return len(self.part_N)

    def fill(self, parts: Sequence[Part]) -> None:
        """Takes the place of what was there. parts: together they hold each of the numbers from 0 on once."""
        self.vectors = [vectors_nD for _, vectors_nD in parts]
        count = sum(len(numbers_n) for numbers_n, _ in parts)
        self.part_N, self.row_N = np.full(count, -1, np.int32), np.zeros(count, np.int64)
        for n, (numbers_n, _) in enumerate(parts):
            self.part_N[numbers_n], self.row_N[numbers_n] = n, np.arange(len(numbers_n))
        assert not (self.part_N < 0).any(), "each passage once"

    def take(self, numbers_B: Sequence[int]) -> np.ndarray:
        """(B, D) float32 vectors of these passages."""
        wanted_B = np.asarray(numbers_B, dtype=np.int64)
        part_B, row_B = self.part_N[wanted_B], self.row_N[wanted_B]
        out_BD = np.empty((len(wanted_B), self.vectors[0].shape[1]), np.float32)
        for n in np.unique(part_B):
            out_BD[part_B == n] = self.vectors[n][row_B[part_B == n]]
        return out_BD
