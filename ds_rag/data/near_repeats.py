"""Passages that almost repeat another, as pages with the same boilerplate do: by their runs of words, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

RUN = 5  # words, or characters of a text without blanks
KEPT = 8  # of a text's runs, those with the smallest hashes
SAME = 6  # of these in common with an earlier text: then it almost repeats it


def almost_repeated(texts: Sequence[str]) -> int:
    """The number of distinct texts that almost repeat an earlier one: of the `KEPT` runs of `RUN` words with the
    smallest hashes (a sketch of all of its runs: Broder 1997, "On the resemblance and containment of documents") at
    least `SAME` are an earlier text's too. Case and blanks do not count, and texts with fewer runs than `KEPT` are not
    compared. Time and memory grow with the number of texts, not with that of pairs."""
    owners: dict[bytes, int] = {}  # hash of a run -> the first text that has it in its sketch
    found = 0
    for number, text in enumerate(dict.fromkeys(" ".join(text.casefold().split()) for text in texts)):
        sketch = sketch_of(text)
        if len(sketch) < KEPT:
            continue
        times: dict[int, int] = {}
        for run in sketch:
            owner = owners.setdefault(run, number)
            times[owner] = times.get(owner, 0) + 1
        times.pop(number, None)
        found += max(times.values(), default=0) >= SAME
    return found


def sketch_of(text: str) -> list[bytes]:
    """The smallest hashes of the text's runs."""
    words: Sequence[str] = text.split()
    if len(words) < RUN and len(text) > 4 * RUN:  # a script without blanks
        words = text
    runs = {" ".join(words[n : n + RUN]) for n in range(max(1, len(words) - RUN + 1))}
    return sorted(blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest() for run in runs)[:KEPT]
