"""What the figures of an audit say in words: train, or not, and why."""

from __future__ import annotations

from typing import Any

from ds_rag.evaluation.audit import READER, RETRIEVER

TRAIN, WEAK, REFUSE, UNKNOWN = "train", "weak", "refuse", "unknown"
ALPHA = 0.05  # p at which a difference is believed
FEW_FOUND = 0.5  # of the rows with their right passage among the candidates
FEW_ROWS = 50
ADVICE = {
    TRAIN: "train: the generator points at right passages more often than the retriever does",
    WEAK: "weak: not shown to be a better judge than the retriever by itself; audit more rows, or train and watch",
    REFUSE: "do not train on this generator's likelihood: it is no better a judge than the retriever itself",
    UNKNOWN: "unknown: no row has both a right and a wrong passage among its candidates",
}


def better(difference: dict[str, Any]) -> bool:
    """Is b above a, by more than chance?"""
    mean, p = difference["mean"], difference["p"]
    return mean is not None and p is not None and mean > 0 and p < ALPHA


def advice_of(figures: dict[str, Any]) -> str:
    """The generator alone must be above the retriever. Where only both together are, or where it is above by no more
    than chance, the verdict is weak."""
    difference = figures["reader_over"][RETRIEVER]
    if difference["mean"] is None:
        return UNKNOWN
    if better(difference):
        return TRAIN
    return WEAK if difference["mean"] > 0 or better(figures["posterior_over_retriever"]) else REFUSE


def verdict(figures: dict[str, Any], labelled: bool) -> dict[str, Any]:
    """`advice`, one of ADVICE, and `lines`, its reasons.

    Args:
        figures: as `ds_rag.evaluation.audit.audit` returns them.
        labelled: right passages are labelled ones. If not, they are those that contain the answer.
    """
    advice = advice_of(figures)
    lines = [ADVICE[advice]]
    if not labelled:
        lines.append(
            "without labels a passage counts as right where it contains the answer: a passage may do so by chance, and "
            "may answer in other words, so this is weaker than an audit with labels"
        )
    if advice != UNKNOWN:
        lines += reasons(figures, labelled)
    return {"advice": advice, "lines": lines}


def reasons(figures: dict[str, Any], labelled: bool) -> list[str]:
    difference, first, most = figures["reader_over"][RETRIEVER], figures["gold_first"], figures["by_K"][-1]
    shares = [first[name]["gold among them"]["mean"] for name in (READER, RETRIEVER)]
    ends = difference["interval"]
    between = f", 95 % interval {ends[0]:+.3f} to {ends[1]:+.3f}" if ends else ""
    lines = [
        f"right passage first of {most['K']}: reader {shares[0]:.3f}, retriever {shares[1]:.3f}; "
        f"difference {difference['mean']:+.3f}{between}, p {difference['p']:.4f}"
    ]
    if difference["n"] < FEW_ROWS:
        lines.append(f"only {difference['n']} rows can tell: a larger --sample makes this surer")
    if most["gold found"] < FEW_FOUND:
        share = f"{most['gold found']:.2f} of the rows have a right passage among their {most['K']} candidates"
        lines.append(f"{share}: what is not among them cannot be taught; more candidates, or another source of them")
    overlap = figures["reader_over"].get("answer's words")
    if labelled and overlap and overlap["mean"] is not None and not better(overlap):
        lines.append("the answer's words alone pick as well: a teacher without a language model would cost less")
    if kept := figures["gains"]["kept_by_threshold"]:
        limit = figures["suggested"]["gate_gain"]
        yes, no = (f"{kept[name]:.2f}" for name in ("gold among them", "gold left out"))
        lines.append(
            f"a best gain of {limit:.2f} or more keeps {yes} of rows with a right passage, {no} of them without"
        )
    return lines
