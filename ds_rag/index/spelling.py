"""Short names of indexes spelt out as FAISS's factory strings, and what a factory string may hold. No FAISS here."""

from __future__ import annotations

import math
import re

from ds_rag.runtime.errors import UserError

# Short names for common choices: FAISS's factory string, and its search parameters (kept in the index's file). Any
# other text is handed to faiss.index_factory as it is, with FAISS's own parameters.
# np: without it FAISS anneals the order of a product quantizer's codes for half a minute, however few the vectors,
# for a filter ("polysemous codes") that no search here turns on; what is found is the same.
INDEXES = {
    "flat": ("Flat", ""),
    "hnsw": ("HNSW32", "efSearch=64"),
    "ivf": ("IVF{lists},Flat", "nprobe={probes}"),
    "ivfpq": ("{pad}IVF{lists},PQ{parts}np", "nprobe={probes}"),
}
LEAST_POINTS = 39  # vectors that place the centroid of a list: below FAISS warns that it is poorly placed
CODEBOOK = 256  # centroids of each part of a product quantizer, and the fewest vectors that can place them
PARTS = 48  # bytes of a vector's code, about

# What a factory string may ask for; a number that stands elsewhere is of dimensions. A graph of 10^9 links a point, or
# as many lists, takes all memory before there is one vector.
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
    """Lists over `count` vectors: the least that FAISS's guidelines advise below a million, 4 sqrt(count), or fewer
    where too few vectors are there to place them."""
    return max(1, min(round(4 * math.sqrt(count)), count // LEAST_POINTS))


def parts_of(dimension: int) -> tuple[int, int]:
    """(parts of a product quantizer, the dimension that they divide).

    A byte each. They are the divisor of the dimension nearest to 48, of 32 to 64; below 32 dimensions one each. Where
    no such number divides it (a prime, say) the vectors are lengthened by zeros, which change no inner product.
    """
    if dimension < 32:
        return dimension, dimension
    fitting = [n for n in range(32, 65) if dimension % n == 0]
    if not fitting:
        return PARTS, -(-dimension // PARTS) * PARTS
    return min(fitting, key=lambda n: (abs(n - PARTS), -n)), dimension


def spell(factory: str, count: int, dimension: int) -> tuple[str, str]:
    """Factory string and search parameters of an index over `count` vectors.

    A search of a short name visits 2 sqrt(lists) lists, no fewer than 8: of one list, FAISS's own default, come a fifth
    to three fifths of the nearest (benchmarks/index.py has the recall). Too few vectors to place the centroids of codes
    stay whole.
    """
    if factory not in INDEXES:
        return factory, ""
    name, parameters = INDEXES["ivf" if factory == "ivfpq" and count < CODEBOOK else factory]
    lists, (parts, length) = lists_of(count), parts_of(dimension)
    probes = min(lists, max(8, round(2 * math.sqrt(lists))))
    pad = f"Pad{length}," if length != dimension else ""
    return name.format(lists=lists, parts=parts, pad=pad), parameters.format(probes=probes)


def check_spelling(factory: str) -> None:
    """Raises UserError for a factory string with a number that no index has a use for."""
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
