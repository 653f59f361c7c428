"""Vectors in several arrays, on disk or in memory, read by number without concatenating the arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Piece = tuple[np.ndarray, np.ndarray]  # vectors (n, D), and the numbers (n,) of their passages


class VectorParts:
    """(N, D) float32 vectors; the numbers of all pieces together are 0 .. N - 1, each once."""

    def __init__(self, pieces: Sequence[Piece]):
        self.arrays = [array for array, _ in pieces]
        self.piece_N = np.concatenate([np.full(len(numbers), p, np.int32) for p, (_, numbers) in enumerate(pieces)])
        self.place_N = np.empty(len(self.piece_N), np.int64)
        order = np.concatenate([numbers for _, numbers in pieces])
        self.place_N[order] = np.concatenate([np.arange(len(numbers)) for _, numbers in pieces])
        self.piece_N[order] = self.piece_N.copy()

    def __len__(self) -> int:
        return len(self.piece_N)

    def __getitem__(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """(len(numbers), D): a copy of these rows."""
        wanted = np.asarray(numbers, dtype=np.int64)
        rows = np.empty((len(wanted), self.arrays[0].shape[1]), np.float32)
        for piece in np.unique(self.piece_N[wanted]):
            here = self.piece_N[wanted] == piece
            rows[here] = self.arrays[piece][self.place_N[wanted[here]]]
        return rows


Vectors = np.ndarray | VectorParts
