"""The table of objectives by name: what the rest of the program has to know about each, and where its class is.

To add one, write a file in `ds_rag/step/objectives/`, a line here, and a test. No code outside that file compares the
objective's name: code that needs a fact about an objective (does it have a generator? does it need labels?) reads it
from this table. The table is in this folder, without torch, so that checking flags and `ds-rag plan` are fast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CANDIDATES, POSITIVE, GIVEN, NOTHING = "candidates", "positive", "given", "nothing"
ANSWER, SCORES = "answer", "scores"
TEACHERS = {  # of `--teacher`
    ANSWER: "the generator's log p(y|x,z)",
    SCORES: "scores in the rows, which another program or `ds-rag score --out` has written",
}


@dataclass(frozen=True)
class ObjectiveSpec:
    """Facts about an objective.

    made_by: "module:class", imported when the objective is made.
    reads: the passages that the generator reads with each query: `candidates`, chosen by score; `positive`, only the
        labelled one; `given`: none, there is no generator, for the rows have a score of each candidate; or `nothing`:
        there is neither a generator nor a teacher.
    needs_positive: every training row must have a labelled positive.
    reader_loss: the objective itself does not train the generator; the reader loss (`--reader_loss`) is added for that.
    one_score: one number for each candidate, the answer's log-probability, is all it needs from a teacher.
    settings: those settings of this objective that not all objectives have.
    """

    made_by: str
    reads: str = CANDIDATES
    needs_positive: bool = False
    reader_loss: bool = False
    one_score: bool = False
    settings: tuple[str, ...] = ()

    @property
    def needs_generator(self) -> bool:
        return self.reads in (CANDIDATES, POSITIVE)

    def under(self, teacher: str) -> ObjectiveSpec:
        """The facts with this `--teacher`. With scores in the rows nothing reads, and no reader loss trains."""
        return replace(self, reads=GIVEN, reader_loss=False) if teacher == SCORES and self.one_score else self

    def trains_generator(self, reader_loss: str) -> bool:
        """Is the generator trained? reader_loss: the value of `--reader_loss`."""
        return self.needs_generator and (not self.reader_loss or reader_loss != "none")


@dataclass(frozen=True)
class CandidateSource:
    """Where a query's unlabelled passages come from: own: the row; index: the newest index's first passages; words:
    BM25's first passages. Without own, the row's unlabelled passages are replaced."""

    own: bool = False
    index: bool = False
    words: bool = False


CANDIDATES_FROM = {
    "batch": CandidateSource(own=True),
    "index": CandidateSource(index=True),
    "both": CandidateSource(own=True, index=True),
    "bm25": CandidateSource(words=True),
    "index,bm25": CandidateSource(index=True, words=True),
}

_HERE = "ds_rag.step.objectives"
_GATE = ("gate_gain", "gate_margin")
_ANSWER = ("answer_logprob", "answer_exponent", "answer_weight")
_TAUGHT = (*_ANSWER, *_GATE, "target_temperature")

OBJECTIVES: dict[str, ObjectiveSpec] = {
    "rag_sequence": ObjectiveSpec(f"{_HERE}.marginal:RagSequence", one_score=True, settings=_ANSWER + _GATE),
    "rag_token": ObjectiveSpec(f"{_HERE}.marginal:RagToken", settings=("answer_weight", *_GATE)),
    "positive_only": ObjectiveSpec(
        f"{_HERE}.positive_only:PositiveOnly", reads=POSITIVE, needs_positive=True, settings=("lm_tokens",)
    ),
    "infonce": ObjectiveSpec(
        f"{_HERE}.contrastive:InfoNCE", reads=NOTHING, needs_positive=True, settings=("contrastive_symmetric",)
    ),
    "emdr2": ObjectiveSpec(f"{_HERE}.distill:Emdr2", reader_loss=True, settings=_ANSWER + _GATE),
    "pdist": ObjectiveSpec(f"{_HERE}.distill:PDist", reader_loss=True, one_score=True, settings=_TAUGHT),
    "replug_lsr": ObjectiveSpec(f"{_HERE}.distill:ReplugLsr", reader_loss=True, one_score=True, settings=_TAUGHT),
}


def spec_of(name: str) -> ObjectiveSpec:
    """The facts about `name`. For an unknown name, which raises an error elsewhere, the defaults."""
    return OBJECTIVES.get(name) or ObjectiveSpec("")


def names_with(setting: str) -> str:
    """The names of the objectives that have `setting`, as text."""
    return " and ".join(name for name, spec in OBJECTIVES.items() if setting in spec.settings)


def objectives_with(**facts: bool) -> str:
    """The flag with the objectives of which these facts of `ObjectiveSpec` are so: "--objective infonce"."""
    fitting = (name for name, spec in OBJECTIVES.items() if all(getattr(spec, k) == v for k, v in facts.items()))
    return f"--objective {' | '.join(fitting)}"
