"""Passages of small documents, counted in words: what is packed, cut, joined and repeated can be read here."""

from __future__ import annotations

from reading import read, words_and_two

from ds_rag.data.documents.document import CODE, TEXT, Block, Document
from ds_rag.data.documents.passages import Chunk, Cutting, chunks_of
from ds_rag.data.documents.sizes import Sizes, joined
from ds_rag.data.documents.splitting import spans_of

NOTHING_JOINS = Cutting(min_tokens=0)


def numbered(begin: int, end: int) -> str:
    """Words w1 w2 ... that tell whether one is lost."""
    return " ".join(f"w{n}" for n in range(begin, end))


def cut(markdown: str, most: int = 24, cutting: Cutting = NOTHING_JOINS) -> list[Chunk]:
    found = chunks_of(read(markdown, "t.md"), Sizes(words_and_two, most, ""), cutting)
    assert [c.tokens for c in found] == words_and_two([joined(c.title, c.text) for c in found])
    assert all(c.tokens <= most for c in found)
    return [c._replace(tokens=0) for c in found]


def test_paragraphs_fill_a_passage_and_headings_end_it():
    found = cut(f"# T\n\n{numbered(0, 10)}\n\n{numbered(10, 20)}\n\n{numbered(20, 30)}\n\n## S\n\nfew words\n")
    assert found == [
        Chunk("T", f"{numbered(0, 10)}\n\n{numbered(10, 20)}", "lines 3-5"),  # 20 words, the title, 2 special tokens
        Chunk("T", numbered(20, 30), "line 7"),
        Chunk("T > S", "few words", "line 11"),
    ]


def test_a_long_paragraph_is_cut_at_sentences_and_then_between_words():
    sentences = [f"{numbered(n, n + 8)} end." for n in range(0, 40, 10)]
    found = cut(f"# T\n\n{' '.join(sentences)}\n")
    assert [chunk.text for chunk in found] == [" ".join(sentences[:2]), " ".join(sentences[2:])]
    found = cut(f"# T\n\n{numbered(0, 50)}\n")
    assert " ".join(chunk.text for chunk in found) == numbered(0, 50) and len(found) == 3


def test_lines_that_are_wrapped_are_no_place_to_cut():
    sentence = f"{numbered(10, 17)} end."
    wrapped = " ".join([sentence] * 6).split(" ")
    text = "\n".join(" ".join(wrapped[n : n + 5]) for n in range(0, len(wrapped), 5))
    document = Document("t.txt", "T", (Block(text, (), 1, text.count("\n") + 1),))
    found = chunks_of(document, Sizes(words_and_two, 24, ""), NOTHING_JOINS)
    assert [" ".join(chunk.text.split()) for chunk in found] == [f"{sentence} {sentence}"] * 3
    assert [chunk.place for chunk in found] == ["lines 1-4", "lines 4-7", "lines 7-10"]


def test_code_is_kept_together_and_else_cut_at_lines():
    lines = [f"{numbered(10 * n, 10 * n + 5)}" for n in range(9)]
    code = "\n".join(lines)
    document = Document("t.txt", "T", (Block("a b c", (), 1, 1), Block(code, (), 3, 11, CODE)))
    sizes = Sizes(words_and_two, 24, "")
    found = chunks_of(document, sizes, NOTHING_JOINS)
    assert [chunk.text for chunk in found] == ["a b c", *("\n".join(lines[n : n + 4]) for n in (0, 4, 8))]
    assert [chunk.place for chunk in found] == ["line 1", "lines 3-6", "lines 7-10", "line 11"]
    small = Document("t.txt", "T", (Block(numbered(0, 10), (), 1, 1), Block("\n".join(lines[:3]), (), 2, 4, CODE)))
    assert [chunk.text for chunk in chunks_of(small, sizes, NOTHING_JOINS)] == [numbered(0, 10), "\n".join(lines[:3])]


def test_rows_of_a_table_have_their_own_lines():
    rows = "".join(f"| r{n} | a b c d e |\n" for n in range(6))
    found = cut(f"# T\n\n| x | y |\n|---|---|\n{rows}")
    assert [chunk.place for chunk in found] == ["lines 3-6", "lines 7-9", "line 10"]
    assert [chunk.text.split("\n")[0][:2] for chunk in found] == ["x ", "r2", "r5"]


def test_short_sections_join_a_neighbour_below_the_same_heading():
    page = "# T\n\n## A\n\n### one\n\nw1\n\n### two\n\nw2\n\n### three\n\nw3 w4 w5 w6 w7\n\n## B\n\nw8\n"
    titles = [(chunk.title, chunk.text) for chunk in cut(page, 40, Cutting(min_tokens=4))]
    assert titles == [
        ("T > A", "one\n\nw1\n\ntwo\n\nw2"),  # 4 words: long enough
        ("T > A > three", "w3 w4 w5 w6 w7"),
        ("T > B", "w8"),  # three is inside A, not beside B
    ]
    assert len(cut(page, 40)) == 4, "min_tokens 0: never"


def test_a_short_section_joins_the_one_before_where_none_follows():
    page = f"# T\n\n## A\n\n{numbered(0, 8)}\n\n## B\n\nw9\n"
    assert [(c.title, c.text) for c in cut(page, 40, Cutting(min_tokens=4))] == [
        ("T", f"A\n\n{numbered(0, 8)}\n\nB\n\nw9")
    ]
    full = f"# T\n\n## A\n\n{numbered(0, 18)}\n\n## B\n\n{numbered(20, 23)}\n"
    assert len(cut(full, 24, Cutting(min_tokens=4))) == 2, "together they do not fit"


def test_a_short_rest_takes_text_from_the_passage_before():
    page = f"# T\n\n{numbered(0, 10)}\n\n{numbered(10, 20)}\n\nw20 w21\n"
    assert [len(c.text.split()) for c in cut(page)] == [20, 2]
    found = cut(page, cutting=Cutting(min_tokens=5))
    assert [c.text for c in found] == [numbered(0, 10), f"{numbered(10, 20)}\n\nw20 w21"]
    one = f"# T\n\n{numbered(0, 23)}\n"
    lengths = [len(c.text.split()) for c in cut(one, cutting=Cutting(min_tokens=5))]
    assert sum(lengths) == 23 and min(lengths) >= 5


def test_overlap():
    page = f"# T\n\n{numbered(0, 18)}\n\n{numbered(18, 30)}\n\n## S\n\nw30\n"
    found = cut(page, cutting=Cutting(overlap=3, min_tokens=0))
    assert [chunk.text for chunk in found] == [
        numbered(0, 18),
        f"{numbered(15, 18)}\n\n{numbered(18, 30)}",
        "w30",  # below another heading
    ]
    parts = cut(f"# T\n\n{numbered(0, 40)}\n", cutting=Cutting(overlap=3, min_tokens=0))
    assert parts[1].text.startswith(parts[0].text[-11:] + " "), "inside a paragraph a blank is between them"


def test_a_title_that_is_too_long_loses_its_middle_then_words_and_none_is_lost():
    page = f"# T\n\n## {numbered(0, 5)}\n\n### S\n\nw9\n"
    assert cut(page) == [Chunk("T > S", "w9", "line 7")]
    long = f"# T\n\n## {numbered(0, 30)}\n\nw30 w31\n"
    first, *others = cut(long)
    assert first.title == numbered(0, 7)
    assert " ".join(" ".join(c.text.split()) for c in (first, *others)) == numbered(0, 32)


def test_a_tokenizer_to_which_line_ends_are_longer_than_blanks() -> None:
    """Wrapped prose is cut as if its line ends were blanks; the parts are measured as they are."""

    def count(text: str) -> int:
        return len(text.split()) + 2 * text.count("\n")

    text = "\n".join("these are nine words of prose in a line." for _ in range(40))
    spans = spans_of(text, TEXT, count, 30)
    parts = [text[begin:end] for begin, end in spans]
    assert max(map(count, parts)) <= 30 and " ".join(" ".join(parts).split()) == " ".join(text.split())
    assert min(map(count, parts[:-1])) >= 9, "they are filled"
