"""The built-in almanac: an invented corpus from which only a true marginal can learn to retrieve.

Every entity has one passage for each of four relations. A question names the entity and, in words that no
passage uses, the relation; so word overlap leads to the right entity, but not to the one of its four passages that
holds the answer. A training row carries those four passages shuffled and unlabelled: the only hint at the right one is
that it makes the answer likely. All relations share one set of values, so an answer does not reveal its relation.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ds_rag.data.formats import Passage, Row


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words("zor mel tav rin qua bol fen gar hul jix kel lom nad osk pry rud syl tum vek wen")
SECOND = _words("via dor mun tesh lar bry cald esk fim gwen hest ilo jarn kov lisk morn nyx orb pell quin")
VALUES = _words("amber basalt cobalt damask ebony flint garnet hazel indigo jasper kelp linen maple nickel opal pearl")

# (question, passage): but for the name, no question shares a word with any passage.
RELATIONS = (
    ("who leads {name} ?", "the chancellor of {name} is {value}"),
    ("where can travellers sleep near {name} ?", "the tavern of {name} is {value}"),
    ("what does everyone eat at {name} ?", "the favourite dish of {name} is {value}"),
    ("which song was written about {name} ?", "the anthem of {name} is {value}"),
)


@dataclass(frozen=True)
class World:
    """A corpus with training rows (unlabelled passages) and held-out evaluation rows (labelled)."""

    corpus: list[Passage]
    train: list[Row]
    evaluation: list[Row]


def make_world(seed: int = 0, held_out: int = 192) -> World:
    """Draws the almanac: 400 entities, 1600 passages, `held_out` questions kept for evaluation.

    The same seed gives the same world; another seed gives other values, other shuffles and another split.
    """
    rng = random.Random(f"ds_rag almanac {seed}")
    corpus: list[Passage] = []
    rows: list[tuple[str, str, list[str], str]] = []  # (question, answer, the entity's passages, the right one)
    for first in FIRST:
        for second in SECOND:
            name = f"{first} {second}"
            values = [rng.choice(VALUES) for _ in RELATIONS]
            texts = [passage.format(name=name, value=v) for (_, passage), v in zip(RELATIONS, values, strict=True)]
            corpus += [Passage(id=f"{first}-{second}-{r}", text=text) for r, text in enumerate(texts)]
            for (question, _), value, text in zip(RELATIONS, values, texts, strict=True):
                rows.append((question.format(name=name), value, rng.sample(texts, len(texts)), text))
    rng.shuffle(rows)
    rng.shuffle(corpus)
    evaluation = [
        Row(
            id=f"eval-{n}",
            query=q,
            answers=(a,),
            positives=(right,),
            passages=(),
            negatives=(),
            where=f"world:{n}",
        )
        for n, (q, a, _, right) in enumerate(rows[:held_out])
    ]
    train = [
        Row(
            id=f"train-{n}",
            query=q,
            answers=(a,),
            positives=(),
            passages=tuple(p),
            negatives=(),
            where=f"world:{n}",
        )
        for n, (q, a, p, _) in enumerate(rows[held_out:])
    ]
    return World(corpus, train, evaluation)
