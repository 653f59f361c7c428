"""Whatever a document holds: no passage is longer than allowed, and together they are the document's text."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_rag.data.documents.document import CODE, TABLE, TEXT, Block, Document
from ds_rag.data.documents.passages import Cutting, chunks_of
from ds_rag.data.documents.sizes import Sizes, joined

QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
CHARS = st.sampled_from(list("abc.?!,;:()-—/\\'\"*`&日é\U0001f600\n\n\t    "))
TEXTS = st.text(CHARS, min_size=1, max_size=300).map(str.strip).filter(bool)
HEADINGS = st.lists(st.sampled_from(["one", "two", "a b c", "a heading of many more words than fit"]), max_size=3)
BLOCKS = st.builds(Block, TEXTS, HEADINGS.map(tuple), st.just(1), st.just(1), st.sampled_from([TEXT, CODE, TABLE]))
DOCUMENTS = st.builds(Document, st.just("d.md"), st.sampled_from(["T", "a title"]), st.lists(BLOCKS).map(tuple))


def words(texts: list[str]) -> list[int]:
    """Words and marks, with special tokens, as of a word-piece tokenizer."""
    return [len(re.findall(r"\w+|[^\w\s]", text)) + 2 for text in texts]


def utf_8(texts: list[str]) -> list[int]:
    """A byte a token, as a tokenizer without the characters in its vocabulary: up to 4 tokens a character."""
    return [len(text.encode()) + 2 for text in texts]


def fewer_with_more(texts: list[str]) -> list[int]:
    """A longer text may have fewer tokens, as where characters are joined over a cut."""
    return [2 + len(re.findall(r"aa|bb|a b|\S", text)) for text in texts]


def letters(text: str) -> str:
    return "".join(text.split())


@given(DOCUMENTS, st.sampled_from([words, utf_8, fewer_with_more]), st.integers(18, 60))
@settings(max_examples=50, **QUIET)
def test_sizes_and_text(document, count, most):
    found = chunks_of(document, Sizes(count, most, ""), Cutting(min_tokens=0))
    assert all(size <= most for size in count([joined(c.title, c.text) for c in found]))
    assert all(chunk.text.strip() for chunk in found)
    rest = letters("".join(chunk.text for chunk in found))
    for block in document.blocks:  # in order; what is between is a heading that its title has no room for
        before, there, rest = rest.partition(letters(block.text))
        assert there and before in ("", letters("a heading of many more words than fit"))
    assert not rest


@given(DOCUMENTS, st.sampled_from([words, utf_8]), st.integers(24, 60), st.integers(0, 8), st.integers(0, 30))
@settings(max_examples=40, **QUIET)
def test_sizes_with_overlap_and_joined_sections(document, count, most, overlap, least):
    found = chunks_of(document, Sizes(count, most, ""), Cutting(overlap, least))
    assert all(size <= most for size in count([joined(c.title, c.text) for c in found]))
    rest = letters("".join(chunk.text for chunk in found))
    for letter in letters("".join(block.text for block in document.blocks)):  # all of it, in order
        _, there, rest = rest.partition(letter)
        assert there
