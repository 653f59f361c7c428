"""What `ds-rag qa-gen` works with: models, passages, and the examples of its prompt."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ds_rag.config import RunConfig
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.by_id import ids_of
from ds_rag.data.data_settings import columns_of, reading_of
from ds_rag.data.formats import read_corpus
from ds_rag.data.prompt import Prompt
from ds_rag.data.records import Passage
from ds_rag.evaluation.questions.batches import distinct
from ds_rag.evaluation.questions.examples import BUILT_IN, Shot, ShotsWanted, read_shots
from ds_rag.index.back_ends import check_factory
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.run.open_saved import BY_WORDS, open_reader, open_saved
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


@dataclass(frozen=True)
class Setup:
    """What everything is done with. retriever: None where passages are found by their words alone. shots: the examples
    in the prompt."""

    args: argparse.Namespace
    config: RunConfig
    generator: Generator
    prompt: Prompt
    retriever: Retriever | None
    corpus: list[Passage]
    shots: list[Shot]
    console: Console

    @property
    def texts(self) -> list[str]:
        return [passage.text for passage in self.corpus]


def open_setup(args: argparse.Namespace, console: Console) -> Setup:
    """Opens models, passages and examples. Raises UserError."""
    if "generator" not in args:
        raise UserError("no generator to write questions", expected="--generator FOLDER")
    retriever = None
    if getattr(args, "retriever", BY_WORDS) == BY_WORDS:
        reader = open_reader(args)
        config, generator, prompt = reader.config, reader.generator, reader.prompt
    else:
        saved = open_saved(args)
        config, generator, prompt, retriever = saved.config, saved.generator, saved.prompt, saved.retriever
    assert generator is not None and prompt is not None
    reading = reading_of(config.data)
    read = read_corpus(args.passages, "passages", reading, columns_of(config.data))
    corpus = distinct(read)
    if len(corpus) < len(read):
        reading.note(f"{len(read) - len(corpus)} passages repeat another's text and are not asked about again")
    shots = BUILT_IN[args.answers][: args.shots]
    if args.examples:
        reading.corpus_by_id = lambda: ids_of(read)
        wanted = ShotsWanted(args.answers, args.shots, args.qa_seed)
        shots = read_shots(args.examples, columns_of(config.data), reading, wanted)
    say_notices(reading.notices, console)
    if retriever is not None:
        check_factory(config.evaluation.index_factory, retriever.hidden_size, len(corpus))
    return Setup(args, config, generator, prompt, retriever, corpus, shots, console)
