from __future__ import annotations

from collections import Counter
from itertools import pairwise

from ds_rag.data.almanac import RELATIONS, VALUES, make_world

WORLD = make_world(0)
NAMES = {tuple(p.text.split(" of ")[1].split(" is ")[0].split()) for p in WORLD.corpus}


def named(text: str) -> tuple[str, str]:
    """The entity of a question or passage."""
    words = text.split()
    return next(pair for pair in pairwise(words) if pair in NAMES)


def relation(question: str) -> int:
    patterns = [q.format(name=" ".join(named(question))) for q, _ in RELATIONS]
    return patterns.index(question)


def test_size():
    assert len(NAMES) >= 400
    assert all(len(name) == 2 for name in NAMES)
    assert len(RELATIONS) == 4
    assert len(set(VALUES)) == len(VALUES) == 16
    assert len({p.text for p in WORLD.corpus}) == len({p.id for p in WORLD.corpus}) == 4 * len(NAMES)
    assert len(WORLD.train) + len(WORLD.evaluation) == 4 * len(NAMES)
    assert len(WORLD.evaluation) >= 128


def test_questions_and_passages_share_names_only():
    questions = {w for row in WORLD.train + WORLD.evaluation for w in row.query.split()}
    passages = {w for p in WORLD.corpus for w in p.text.split()}
    assert questions & passages == {w for name in NAMES for w in name}
    assert not questions & set(VALUES)


def test_every_relation_draws_on_all_values():
    for number in range(4):
        answers = {r.answers[0] for r in WORLD.train if relation(r.query) == number}
        assert answers == set(VALUES)


def test_training_rows_are_unlabelled_and_hold_their_entitys_passages():
    passages = {name: {p.text for p in WORLD.corpus if named(p.text) == name} for name in NAMES}
    for row in WORLD.train:
        assert not row.positives
        assert not row.negatives
        assert len(row.passages) == 4
        assert set(row.passages) == passages[named(row.query)]


def test_the_right_passage_holds_the_answer_and_stands_anywhere():
    counts = Counter()
    for row in WORLD.train:
        number = relation(row.query)
        _, wording = RELATIONS[number]
        right = wording.format(name=" ".join(named(row.query)), value=row.answers[0])
        counts[number, row.passages.index(right)] += 1
    assert len(counts) == 16
    assert min(counts.values()) > 0.04 * sum(counts.values())


def test_some_other_passages_hold_the_answer_too():
    """Else the generator's likelihood alone, without words of the relation, would be enough."""
    shared = [sum(p.endswith(r.answers[0]) for p in r.passages) > 1 for r in WORLD.train]
    assert 0.05 < sum(shared) / len(shared) < 0.5


def test_held_out_pairs_are_new_labelled_and_in_the_corpus():
    pairs = {(named(r.query), relation(r.query)) for r in WORLD.train}
    texts = {p.text for p in WORLD.corpus}
    for row in WORLD.evaluation:
        assert (named(row.query), relation(row.query)) not in pairs
        assert len(row.positives) == 1
        assert set(row.positives) <= texts
        assert named(row.positives[0]) == named(row.query)
        assert row.positives[0].endswith(row.answers[0])
    assert {named(r.query) for r in WORLD.evaluation} <= {name for name, _ in pairs}


def test_the_seed_decides():
    again, other = make_world(0), make_world(1)
    assert again == WORLD
    assert {p.text for p in other.corpus} != {p.text for p in WORLD.corpus}
    assert [r.query for r in other.evaluation] != [r.query for r in WORLD.evaluation]
    assert [r.passages for r in other.train] != [r.passages for r in WORLD.train]
    assert len(make_world(0, held_out=40).evaluation) == 40
