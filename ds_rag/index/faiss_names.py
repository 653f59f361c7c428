"""Short names of index types as FAISS factory strings, and limits on factory strings. Does not import FAISS."""

from __future__ import annotations

import math
import re

from ds_rag.runtime.errors import UserError

# Short names for common choices: factory string, and search parameters (saved in the index file). Any other text is
# passed to faiss.index_factory unchanged, with the default parameters of FAISS. np: without it FAISS anneals the order
# of a product quantizer's codes for half a minute, however few the vectors, for a filter ("polysemous codes") that no
# search here turns on; what is found is the same.
INDEXES = {
    "flat": ("Flat", ""),
    "hnsw": ("HNSW32", "efSearch=64"),
    "ivf": ("IVF{lists},Flat", "nprobe={probes}"),
    "ivfpq": ("{pad}IVF{lists},PQ{parts}np", "nprobe={probes}"),
}
LEAST_POINTS = 39  # vectors per list for training: with fewer FAISS warns that centroids are poorly placed
CODEBOOK = 256  # centroids of each part of a product quantizer, and the least number of vectors to train them
PARTS = 48  # about the bytes of a vector's code

# Limits on the numbers in a factory string; numbers elsewhere are dimensions. A graph with 10^9 links per point, or as
# many lists, would take all memory before there is a single vector.
LIMITS = (
    (r"(?:HNSW|NSG)(\d+)", 2, 512, "links of a point"),
    (r"IVF(\d+)", 1, 2**20, "lists"),
    (r"IMI\d+x(\d+)", 1, 10, "bits of a list's number"),
    (r"(?:PQ|RQ|LSQ)\d+x(\d+)", 1, 16, "bits of a code"),
    (r"(?:^|[^P])(?:RQ|LSQ)(\d+)", 1, 128, "codes of a vector"),
    (r"(\d+)", 0, 2**20, "any number"),
    (r"(?:PCA|PCAR|PCAW|OPQ\d+_|Pad|RR|ITQ|RQ|LSQ|PQ|Fc)(\d+)", 1, 65536, "dimensions"),
)
MOST_LETTERS = 200


def lists_of(count: int) -> int:
    """The number of lists for `count` vectors: 4 sqrt(count), the least that FAISS's guidelines advise below a million,
    or fewer if there are too few vectors to train them."""
    return max(1, min(round(4 * math.sqrt(count)), count // LEAST_POINTS))


def parts_of(dimension: int) -> tuple[int, int]:
    """(parts of a product quantizer, the dimension that they divide).

    Each part takes a byte. Their number is the divisor of the dimension from 32 to 64 that is nearest to 48; below 32
    dimensions there is one part for each dimension. If no such number divides the dimension (a prime, say), vectors are
    padded with zeros, which changes no inner product.
    """
    if dimension < 32:
        return dimension, dimension
    fitting = [n for n in range(32, 65) if dimension % n == 0]
    if not fitting:
        return PARTS, -(-dimension // PARTS) * PARTS
    return min(fitting, key=lambda n: (abs(n - PARTS), -n)), dimension


def spell(factory: str, count: int, dimension: int) -> tuple[str, str]:
    """Factory string and search parameters of an index over `count` vectors.

    With a short name a search visits 2 sqrt(lists) lists, at least 8: one list, the default of FAISS, contains only a
    fifth to three fifths of the nearest vectors (benchmarks/index.py has the recall). If there are too few vectors to
    train codes, full vectors are stored.
    """
    if factory not in INDEXES:
        return factory, ""
    name, parameters = INDEXES["ivf" if factory == "ivfpq" and count < CODEBOOK else factory]
    lists, (parts, length) = lists_of(count), parts_of(dimension)
    probes = min(lists, max(8, round(2 * math.sqrt(lists))))
    pad = f"Pad{length}," if length != dimension else ""
    return name.format(lists=lists, parts=parts, pad=pad), parameters.format(probes=probes)


def check_spelling(factory: str) -> None:
    """Raises UserError for a factory string with a number out of bounds."""
    if factory in INDEXES:
        return
    if len(factory) > MOST_LETTERS:
        raise UserError(
            "--index_factory: too long",
            found=f"{len(factory)} letters",
            expected=f"{' | '.join(INDEXES)}, or a faiss.index_factory string",
        )
    for pattern, least, most, what in LIMITS:
        for text in re.findall(pattern, factory, re.ASCII):
            if not least <= int(text) <= most:
                raise UserError(
                    f"--index_factory {factory}: {what} out of bounds",
                    found=text,
                    expected=f"{least:,} to {most:,}",
                )
