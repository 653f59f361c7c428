"""Answer metrics are those of the official SQuAD v1.1 script, whose four steps are written down here again; the stated
exceptions are answers that its normalisation leaves nothing of, and pairs of different numbers (docs/evaluation.md)."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_rag.evaluation.containment import squad_words
from ds_rag.evaluation.metrics import NUMBER, answer_metrics_per_row

QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
WORDS = [
    "the",
    "a",
    "An",
    "Ann",
    "ann.",
    "zor,",
    "tavern",
    "THE",
    "of",
    "an-other",
    "1.5",
    "15",
    "(b)",
    "\u2013a",
    "été",
    "-",
]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


def normalise(text: str) -> str:
    """The script's four steps: lower case; without ASCII punctuation; without articles; one blank between words."""
    text = text.lower()
    text = "".join(c for c in text if c not in string.punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def official(prediction: str, truth: str) -> tuple[float, float]:
    """The script's exact match and F1 of one pair."""
    one, other = normalise(prediction).split(), normalise(truth).split()
    same = sum((Counter(one) & Counter(other)).values())
    f1 = 2 * same / (len(one) + len(other)) if same else 0.0
    return float(one == other), f1


def is_exception(prediction: str, truth: str) -> bool:
    """Two numbers, of which different ones are no match, or two answers of which nothing is left."""
    numbers = all(NUMBER.fullmatch(text.strip()) for text in (prediction, truth))
    return numbers or not (normalise(prediction) or normalise(truth))


@settings(max_examples=200, **QUIET)
@given(text=TEXTS)
def test_the_words_of_an_answer_are_the_scripts(text: str) -> None:
    assert " ".join(squad_words(text)) == normalise(text)


@settings(max_examples=150, **QUIET)
@given(prediction=TEXTS, truths=st.lists(TEXTS, min_size=1, max_size=3))
def test_exact_match_and_f1_are_the_scripts(prediction: str, truths: list[str]) -> None:
    """The best over the references, as the script takes it."""
    if any(is_exception(prediction, truth) for truth in truths):
        return
    found = answer_metrics_per_row([prediction], [truths])
    pairs = [official(prediction, truth) for truth in truths]
    assert found["exact_match"][0] == max(exact for exact, _ in pairs)
    assert found["f1"][0] == pytest.approx(max(f1 for _, f1 in pairs), abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "truth", "ours", "theirs"),
    [
        ("A", "the", 0.0, 1.0),  # an option that is an article: its words are compared
        ("+", "-", 0.0, 1.0),  # symbols: their characters are
        ("-1.5", "15", 0.0, 1.0),  # numbers: their values are
    ],
)
def test_the_exceptions_differ_from_the_script(prediction: str, truth: str, ours: float, theirs: float) -> None:
    assert answer_metrics_per_row([prediction], [[truth]])["exact_match"][0] == ours
    assert official(prediction, truth)[0] == theirs
