"""Which passages of the corpus the rows mean, and which rows ask the same.

A row may hold a passage as its text, with a title in front or without, or as an object that names its id; the corpus
may have joined a title to it. All of these are one passage: otherwise it would stand in the corpus twice, once as
the positive and once as its best hard negative.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ds_rag.data.bad_rows import WARNING
from ds_rag.data.records import Passage, Row
from ds_rag.data.rows import BY_ID, ID_LIKE
from ds_rag.data.statistics import plain
from ds_rag.runtime.errors import UserError

WORDS = {n: chr(n).lower() if re.match(r"\w", chr(n)) else " " for n in range(128)}  # of ASCII
LOUD = 0.1  # of labelled passages that are not in the corpus: from here on a warning


def texts_of(rows: Iterable[Row]) -> set[str]:
    return {text for row in rows for text in (*row.positives, *row.passages, *row.negatives)}


def find_in_corpus(
    corpus: Sequence[Passage], number: Mapping[str, int], rows: Sequence[Row]
) -> dict[str, tuple[int, ...]]:
    """Text of a row -> numbers of the corpus passages that it means, for texts that are not there as they are.

    number: text -> number of a corpus passage. Tried are, case and blanks aside, the passage with and without its title
    and the row's text with and without its own, whatever marks stand between title and text; and its id, where one of
    the two texts contains the other.
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
        by_text[plain(text)].add(text)
        by_words[words(text)].add(text)
    for passage in (passage for row in rows for passage in row.given if passage.text in missing):
        if passage.lead:
            by_body[plain(passage.body)].add(passage.text)
            titled[words(passage.text)].add(passage)
        if passage.id:
            by_id[passage.id].add(passage)
    found: dict[str, dict[int, None]] = defaultdict(dict)
    for passage in corpus:
        whole = plain(passage.text)
        meant = set(by_text.get(whole, ()))
        meant |= by_text.get(plain(passage.body), set()) if passage.lead else by_body.get(whole, set())
        if passage.lead:
            meant |= {text for text in by_words.get(words(passage.text), ()) if joins(passage, plain(text))}
        elif titled:
            meant |= {same.text for same in titled.get(words(passage.text), ()) if joins(same, whole)}
        meant |= {same.text for same in by_id.get(passage.id, ()) if overlaps(same.body, passage.body)}
        for text in meant:
            found[text][number[passage.text]] = None
    return {text: tuple(numbers) for text, numbers in found.items()}


def joins(passage: Passage, whole: str) -> bool:
    """Is a text, as `plain` has it, this passage's title and body, with marks alone (a colon, a bar) between them?"""
    title, body = plain(passage.text[: passage.lead]), plain(passage.body)
    between = whole[len(title) : len(whole) - len(body)]
    return whole.startswith(title) and whole.endswith(body) and not re.search(r"\w", between)


def words(text: str) -> str:
    """A text's words between blanks, without case and punctuation; as `plain` has it where it has none."""
    if text.isascii():  # the same in a tenth of the time
        return " ".join(text.translate(WORDS).split()) or plain(text)
    return " ".join(re.findall(r"\w+", text.casefold())) or plain(text)


def overlaps(one: str, other: str) -> bool:
    """Does one of two texts contain the other, as whole words, but for case, blanks and punctuation? Scripts other than
    ASCII may write no blanks: there any place counts."""
    one, other = words(one), words(other)
    if one.isascii() and other.isascii():
        one, other = f" {one} ", f" {other} "
    return one in other or other in one


def refuse_ids_as_texts(corpus: Sequence[Passage], rows: Sequence[Row], missing: set[str]) -> None:
    """Raises UserError where rows name passages of the corpus by their ids: these would become passages themselves.

    missing: texts of rows that the corpus lacks.
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
    """How many of the rows' labelled passages are not in the corpus; loudly where they are many. then: what becomes of
    them."""
    labelled = {text for row in rows for text in row.positives}
    lost = len(labelled & missing)
    if not lost:
        return []
    loud = WARNING if lost >= LOUD * len(labelled) else ""
    return [f"{loud}{lost} of {len(labelled)} labelled passages of {of} rows are not in the corpus{then}"]


def positives_elsewhere(
    queries: Sequence[str], positives: Sequence[tuple[int, ...]], labelled: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """For each row the positives of other rows with the same query, case and blanks aside: no negatives of it.

    positives: of each row; labelled: what the row has labels of itself, which hold.
    """
    every: dict[str, dict[int, None]] = defaultdict(dict)
    names = [plain(query) for query in queries]
    for name, own in zip(names, positives, strict=True):
        every[name] |= dict.fromkeys(own)
    return [tuple(n for n in every[name] if n not in own) for name, own in zip(names, labelled, strict=True)]
