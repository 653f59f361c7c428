"""What a call of `ds-rag build` asks for, and where everything lies in its folder."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.commands.plan.request import flag_text
from ds_rag.config import OWNER
from ds_rag.config.flags import read_recipe, settings_of
from ds_rag.runtime.errors import UserError

# Settings that the stages have from each other, with the flag of this command that takes their place.
OWNED = {
    "train_data": "--rows FILE",
    "output_dir": "--out FOLDER, in which the run is",
    "resume": "the same command again, which goes on where it was",
    "folds": "--eval_fraction",
    "fold": "--eval_fraction",
    "fold_corpus": "--eval_fraction",
    "train_labels": "--label_free",
    "cluster_column": "--document_column",
    "scores_column": "ds-rag train, for rows with scores",
}
PASSED = ("chunk", "qa_gen", "audit")  # commands with further words: --chunk_args and so on
DOCUMENTS_OR_CORPUS = "folders or files of documents, or --corpus FILE with passages"


@dataclass(frozen=True)
class Wanted:
    """A call. given: the settings of training among its flags. recipe: the user's own. writer: the language model that
    writes questions. more: command -> further words for it."""

    documents: tuple[str, ...]
    out: Path
    rows: str | None = None
    given: dict[str, Any] | None = None
    recipe: str | None = None
    writer: str | None = None
    label_free: bool = False
    force: bool = False
    keep_model: bool = False
    ranks: int = 1
    more: dict[str, tuple[str, ...]] | None = None

    def setting(self, name: str) -> Any:
        """A setting that a flag gave; None where none did."""
        return (self.given or {}).get(name)

    def settings(self, recipe: str) -> dict[str, Any]:
        """Those of a recipe (the user's own takes its place) and of flags."""
        return read_recipe(self.recipe or recipe) | (self.given or {})

    @property
    def passages(self) -> Path:
        return Path(self.setting("corpus") or self.out / "passages.jsonl")

    @property
    def questions(self) -> Path:
        """The rows: the user's, or those that are written."""
        return Path(self.rows or self.out / "questions.jsonl")

    @property
    def filters(self) -> Path:
        """How many written questions each filter rejected."""
        return self.out / "questions.json"

    @property
    def train_rows(self) -> Path:
        return self.out / "rows" / "train.jsonl"

    @property
    def eval_rows(self) -> Path:
        return self.out / "rows" / "eval.jsonl"

    @property
    def row_counts(self) -> Path:
        return self.out / "rows" / "rows.json"

    @property
    def audit(self) -> Path:
        return self.out / "audit.json"

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def scores(self) -> str:
        """Folder of the language model's scores."""
        return self.setting("teacher_cache") or str(self.out / "scores")

    @property
    def vectors(self) -> str:
        """Folder of passages' vectors."""
        return self.setting("vector_cache") or str(self.out / "vectors")


def read_wanted(args: argparse.Namespace) -> Wanted:
    """The call that these arguments describe. Raises UserError for what does not fit together."""
    given = settings_of(args)
    for name, instead in OWNED.items():
        if name in given:
            raise UserError(f"--{name}: ds-rag build sets it itself", fix=instead)
    wanted = Wanted(
        tuple(args.documents),
        Path(args.out),
        args.rows,
        {name: given[name] for name in OWNER if name in given},  # in whatever order they were typed
        getattr(args, "recipe", None),
        args.question_generator,
        args.label_free,
        args.force,
        args.keep_model,
        int(args.nproc_per_node),
        {name: words_of(getattr(args, f"{name}_args"), name) for name in PASSED},
    )
    check(wanted)
    return wanted


def words_of(text: str | None, name: str) -> tuple[str, ...]:
    """Further words for a command, split as a shell does it."""
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise UserError(f"--{name}_args: cannot be split into words", found=f"{text!r}: {error}") from None


def check(wanted: Wanted) -> None:
    """Raises UserError where something is missing, or given twice."""
    corpus = wanted.setting("corpus")
    if bool(wanted.documents) == bool(corpus):
        raise UserError(
            "ds-rag build: documents and --corpus" if corpus else "ds-rag build: no documents",
            found=" ".join([*wanted.documents, f"--corpus {corpus}"]) if corpus else None,
            expected=DOCUMENTS_OR_CORPUS,
        )
    for path in wanted.documents:
        place = Path(path).expanduser()
        if not place.exists():
            raise UserError(f"ds-rag build: {path} does not exist", expected=DOCUMENTS_OR_CORPUS)
        if wanted.out.resolve().is_relative_to(place.resolve()):
            raise UserError(
                "--out: among the documents",
                found=f"{wanted.out} in {path}",
                expected="a folder beside them, so that what is built is not read as a document",
            )
    if wanted.setting("retriever") is None:
        raise UserError("ds-rag build: no retriever", expected="--retriever, an encoder to begin with")
    if wanted.setting("generator") is None:
        raise UserError(
            "ds-rag build: no generator",
            expected="--generator, a causal language model that reads and answers (and writes questions, where there "
            "are no --rows)",
        )


def flags(settings: dict[str, Any]) -> tuple[str, ...]:
    """Settings as words of a command line."""
    return tuple(
        word
        for name, value in settings.items()
        for word in (f"--{name}", "none" if value is None else flag_text(value))
    )
