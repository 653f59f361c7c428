"""Matches the passages of rows to those of the corpus, and finds rows with the same query.

A row may hold a passage as its text, with or without a title, or as an object with an id; the corpus may have put a
title before the text. All of these are one passage. Otherwise the passage would be in the table twice, once as the
positive and once as its own hardest negative.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ds_rag.data.bad_rows import WARNING
from ds_rag.data.records import Passage, Row
from ds_rag.data.rows import BY_ID, ID_LIKE
from ds_rag.data.statistics import normalised
from ds_rag.runtime.errors import UserError

WORDS = {n: chr(n).lower() if re.match(r"\w", chr(n)) else " " for n in range(128)}  # of ASCII
LOUD = 0.1  # fraction of labelled passages missing in the corpus from which the notice is a warning


def texts_of(rows: Iterable[Row]) -> set[str]:
    return {text for row in rows for text in (*row.positives, *row.passages, *row.negatives)}


def find_in_corpus(
    corpus: Sequence[Passage], number: Mapping[str, int], rows: Sequence[Row]
) -> dict[str, tuple[int, ...]]:
    """Text in a row -> numbers of the corpus passages that it stands for, for texts that are not in the corpus exactly.

    number: text -> number of a corpus passage. Ignoring case and blanks, it compares both texts with and without their
    titles, whatever punctuation is between title and text; and ids, where one of the two texts contains the other.
    """
    missing = texts_of(rows) - number.keys()
    if not missing:
        return {}
    by_text: dict[str, set[str]] = defaultdict(set)
    by_body: dict[str, set[str]] = defaultdict(set)  # of a row's passage that came with a title
    by_id: dict[str, set[Passage]] = defaultdict(set)
    by_words: dict[str, set[str]] = defaultdict(set)
    titled: dict[str, set[Passage]] = defaultdict(set)  # by its words
    for text in missing:
        by_text[normalised(text)].add(text)
        by_words[words(text)].add(text)
    for passage in (passage for row in rows for passage in row.given if passage.text in missing):
        if passage.lead:
            by_body[normalised(passage.body)].add(passage.text)
            titled[words(passage.text)].add(passage)
        if passage.id:
            by_id[passage.id].add(passage)
    found: dict[str, dict[int, None]] = defaultdict(dict)
    for passage in corpus:
        whole = normalised(passage.text)
        meant = set(by_text.get(whole, ()))
        meant |= by_text.get(normalised(passage.body), set()) if passage.lead else by_body.get(whole, set())
        if passage.lead:
            meant |= {text for text in by_words.get(words(passage.text), ()) if joins(passage, normalised(text))}
        elif titled:
            meant |= {same.text for same in titled.get(words(passage.text), ()) if joins(same, whole)}
        meant |= {same.text for same in by_id.get(passage.id, ()) if overlaps(same.body, passage.body)}
        for text in meant:
            found[text][number[passage.text]] = None
    return {text: tuple(numbers) for text, numbers in found.items()}


def joins(passage: Passage, whole: str) -> bool:
    """Is `whole`, normalised by `normalised`, the title and body of this passage with only punctuation (a colon, a bar)
    between them?"""
    title, body = normalised(passage.text[: passage.lead]), normalised(passage.body)
    between = whole[len(title) : len(whole) - len(body)]
    return whole.startswith(title) and whole.endswith(body) and not re.search(r"\w", between)


def words(text: str) -> str:
    """The words of a text separated by blanks, without case and punctuation; `plain(text)` if it has no words."""
    if text.isascii():  # the same result in a tenth of the time
        return " ".join(text.translate(WORDS).split()) or normalised(text)
    return " ".join(re.findall(r"\w+", text.casefold())) or normalised(text)


def overlaps(one: str, other: str) -> bool:
    """Does one of two texts contain the other, ignoring case, blanks and punctuation? ASCII texts must match whole
    words; other scripts may have no blanks, so there any position counts."""
    one, other = words(one), words(other)
    if one.isascii() and other.isascii():
        one, other = f" {one} ", f" {other} "
    return one in other or other in one


def refuse_ids_as_texts(corpus: Sequence[Passage], rows: Sequence[Row], missing: set[str]) -> None:
    """Raises UserError where rows name passages of the corpus by their ids: the ids would be taken as passages.

    missing: texts in rows that are not in the corpus.
    """
    lost = texts_of(rows) & missing
    if not lost:
        return
    positives = {text for row in rows for text in row.positives}
    ids = sorted({passage.id for passage in corpus} & lost)
    unknown = bool(positives) and positives <= lost and all(ID_LIKE.fullmatch(text) for text in positives)
    if ids or unknown:
        found = ids or sorted(positives)
        raise UserError(
            "rows name their passages by id" + ("" if ids else ", and none of these is a passage of the corpus"),
            found=", ".join(map(repr, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else ""),
            expected="the passages' texts",
            fix=BY_ID,
        )


def missing_note(rows: Sequence[Row], missing: set[str], of: str, then: str) -> list[str]:
    """A notice of how many labelled passages are not in the corpus, a warning where they are many. then: what happens
    to them."""
    labelled = {text for row in rows for text in row.positives}
    lost = len(labelled & missing)
    if not lost:
        return []
    loud = WARNING if lost >= LOUD * len(labelled) else ""
    return [f"{loud}{lost} of {len(labelled)} labelled passages of {of} rows are not in the corpus{then}"]


def positives_elsewhere(
    queries: Sequence[str], positives: Sequence[tuple[int, ...]], labelled: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """For each row the positives of other rows with the same query, ignoring case and blanks: these must not be its
    negatives.

    positives: of each row; labelled: passages that the row itself has a label for; its own label wins.
    """
    every: dict[str, dict[int, None]] = defaultdict(dict)
    names = [normalised(query) for query in queries]
    for name, own in zip(names, positives, strict=True):
        every[name] |= dict.fromkeys(own)
    return [tuple(n for n in every[name] if n not in own) for name, own in zip(names, labelled, strict=True)]
