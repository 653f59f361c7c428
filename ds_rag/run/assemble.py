"""Builds the parts of a training run from its configuration: data, tokens, models, engines, the joint step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ds_rag.config import OptimConfig, RunConfig
from ds_rag.config.effects import idle
from ds_rag.config.objectives import CANDIDATES_FROM, GIVEN
from ds_rag.config.schedules import Schedule
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.dataset import RagData, read_data
from ds_rag.data.loader import BatchOptions, Loader, TrainTokens
from ds_rag.data.prompt import Prompt, make_prompt
from ds_rag.data.token_tables import EvalTokens, tokenize_run
from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.setup import make_engines, plan_engines
from ds_rag.index.back_ends import check_factory, check_spelling
from ds_rag.index.lexical_pairs import LexicalPairs
from ds_rag.index.passage_vectors import PassageVectors
from ds_rag.models.behaviour_checks import check_looks_back
from ds_rag.models.from_settings import open_generator, open_retriever
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.models.score_folder import open_scores
from ds_rag.models.sharded import full_copy_notice, is_sharded
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.models.tokenizer import check_token_ids
from ds_rag.run.auto_length import settle_length
from ds_rag.run.index_candidates import Candidates
from ds_rag.run.settle_names import settle_names
from ds_rag.run.split_file import split_of_run
from ds_rag.run.word_candidates import passages_by_words
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.generator_side import StepOptions
from ds_rag.step.joint_step import JointStep
from ds_rag.step.objectives import Objective, make_objective

MOST_REPEATS = 16  # a micro-batch may have this many times as many rows as the data
MOST_ROWS = 10**7  # rows in one step
MOST_CANDIDATES = 10**9  # entries in the table of all rows' candidates, 4 bytes each


@dataclass
class Parts:
    """What the training loop works with."""

    data: RagData
    loader: Loader
    eval_tokens: EvalTokens
    joint: JointStep
    total_steps: int
    schedule: Schedule
    candidates: Candidates | None = None  # where the index or BM25 supplies them

    @property
    def engines(self) -> Engines:
        return self.joint.engines

    @property
    def objective(self) -> Objective:
        return self.joint.objective

    @property
    def prompt(self) -> Prompt | None:
        return self.joint.prompt

    @property
    def retriever(self) -> Retriever:
        return self.joint.retriever

    @property
    def generator(self) -> Generator | None:
        return self.joint.generator

    @property
    def device(self) -> torch.device:
        return self.joint.device


@dataclass
class Models:
    """The two models in memory. engines(trained, total_steps): makes their engines, and freezes a model whose entry in
    `trained` is False."""

    retriever: Retriever
    generator: Generator | None
    engines: Callable[[dict[str, bool], int], Engines]


def assemble(
    config: RunConfig, console: Console, folder: Path, device: torch.device, resumed: Path | None = None
) -> Parts:
    """Opens the data and models that the settings name and builds all parts of the run. Called on every rank, with
    equal results. resumed: the checkpoint that the run continues. Raises UserError for what the user can fix."""
    objective = make_objective(config.objective, collectives.world())
    plans = plan_engines(config)
    check_spelling(config.evaluation.index_factory)
    needs = {"need_positive": objective.spec.needs_positive, "need_answers": objective.needs_generator}
    needs["need_scores"] = objective.spec.reads == GIVEN
    for line in idle(config):
        console.say(f"note: {line}", style="yellow")
    settle_names(config, console.say, resumed=resumed)
    from_index = config.objective.candidates_from != "batch"
    known = split_of_run(folder, resumed)
    data = read_data(config.data, config.is_builtin, **needs, from_index=from_index, known=known)
    say_notices(data.notices, console)
    check_labels(config, data, console)
    torch.manual_seed(config.optim.seed)
    sharded = {name: plan.while_loading for name, plan in plans.items()}
    retriever, generator = load_models(config, objective, data, folder, list(sharded.values()))
    for (name, how), model in zip(sharded.items(), (retriever, generator), strict=True):
        if note := full_copy_notice(name, getattr(config.model, name), model, how):
            console.say(note, style="yellow")

    def engines(trained: dict[str, bool], total_steps: int) -> Engines:
        return make_engines(config, plans, (retriever, generator), trained, total_steps, folder, device)

    return put_together(config, objective, data, Models(retriever, generator, engines), console)


def put_together(config: RunConfig, objective: Objective, data: RagData, models: Models, console: Console) -> Parts:
    """Builds the parts of a run from models and rows in memory: tokens, batches, engines, the joint step."""
    retriever, generator = models.retriever, models.generator
    vectors = constant_passages(config, retriever, console)
    prompt = make_prompt(config.model, generator.tokenizer, generator.max_length) if generator else None
    in_shards = generator is not None and is_sharded(generator)  # if so, it can run only once it has its engine
    if not in_shards:
        ask_for_sharing(generator, config, console)
    world = collectives.world() if config.evaluation.index_shards == "keep" else 1
    check_factory(config.evaluation.index_factory, retriever.hidden_size, max(1, data.corpus_size // world))
    train_tokens, eval_tokens = tokenize_run(retriever, prompt, data, config.data, console)
    check_generator_ids(generator, train_tokens, eval_tokens)
    check_room(prompt, train_tokens, eval_tokens, config.evaluation.max_new_tokens, console)
    optim = config.optim
    check_batch(len(data.train), optim)
    loader = Loader(data.train, train_tokens, batch_options(config, retriever))
    if retriever.reads_words:
        loader.words = LexicalPairs([row.query for row in data.train], data.texts, data.allowed)
    candidates = None
    if config.objective.candidates_from != "batch":
        count = candidate_count(config.objective.index_candidates, data, console)
        source = CANDIDATES_FROM[config.objective.candidates_from]
        batch = config.evaluation.per_device_eval_batch_size if source.index else None
        words = partial(passages_by_words, data, console) if source.words else None
        candidates = Candidates(loader, count, data.corpus_size, batch, data.allowed, words)
    total = settle_length(config, data, loader.steps_per_epoch, console.say)
    engines = models.engines(trained_models(config, objective), total)
    if in_shards:
        check_looks_back(generator, f"--generator {config.model.generator}")
        ask_for_sharing(generator, config, console)
    scores = None
    if (
        config.scoring.teacher_cache
        and generator is not None
        and prompt is not None
        and "generator" not in engines.learning
    ):
        scores = open_scores(config.scoring.teacher_cache, generator, prompt, config.data, console.say)
        console.say(f"teacher    {len(scores):,} stored scores in {scores.folder}")
    options = StepOptions(config.scoring, optim, optim.seed, console.say, collectives.local_world(), scores, vectors)
    joint = JointStep.from_models(retriever, generator, objective, engines, prompt, options)
    return Parts(data, loader, eval_tokens, joint, total, Schedule(config.evaluation.refresh_index), candidates)


def constant_passages(config: RunConfig, retriever: Retriever, console: Console) -> PassageVectors | None:
    """With `--train_side query`: freezes the retriever's side of passages, and returns the place for their vectors,
    which the index stage fills before the first step."""
    if config.model.train_side != "query":
        return None
    if config.model.encoders != "two":
        console.say("note: --train_side query: two encoders from here on; that of passages stays as it is")
    retriever.keep_passages()
    return PassageVectors()


def batch_options(config: RunConfig, retriever: Retriever) -> BatchOptions:
    optim = config.optim
    return BatchOptions(
        optim.per_device_train_batch_size,
        optim.gradient_accumulation_steps,
        collectives.rank(),
        collectives.world(),
        optim.seed,
        retriever.tokenizer.pad_token_id,
        shared_pool=config.objective.pool == "world",
        keep_own=CANDIDATES_FROM[config.objective.candidates_from].own,
    )


def trained_models(config: RunConfig, objective: Objective) -> dict[str, bool]:
    """Model -> whether it is trained. Raises UserError where neither is."""
    frozen = config.model.freeze
    trained = {"retriever": frozen != "retriever", "generator": frozen != "generator" and objective.trains_generator}
    if not any(trained.values()):
        raise UserError("neither model would be trained", found=f"--objective {objective.name} --freeze {frozen}")
    return trained


def check_labels(config: RunConfig, data: RagData, console: Console) -> None:
    """Where `--contrastive_weight` adds InfoNCE and no training row has a labelled passage: raises UserError if it is a
    flag of this command, else (from a recipe) prints a note."""
    if not config.objective.contrastive_weight or any(row.positives for row in data.train):
        return
    what = "--contrastive_weight: no training row has a labelled passage"
    if "contrastive_weight" in config.flags:
        raise UserError(what, expected="a column positive, passage or positives", fix="label them, or leave it out")
    console.say(f"note: {what}, so it has no effect", style="yellow")


def check_batch(rows: int, optim: OptimConfig) -> None:
    """Raises UserError for a micro-batch that repeats few rows many times, and for a step of too many rows: either
    would only fill the memory."""
    batch, micro_batches = optim.per_device_train_batch_size, optim.gradient_accumulation_steps * collectives.world()
    if batch > MOST_REPEATS * rows:
        raise UserError(
            "--per_device_train_batch_size: far more than there are rows",
            found=f"{batch:,}, of {rows:,} training rows",
            expected=f"{rows:,} or less: a row that is twice in a micro-batch competes with itself",
        )
    if batch * micro_batches > MOST_ROWS:
        raise UserError(
            "--gradient_accumulation_steps: too many rows a step",
            found=f"{batch:,} a micro-batch x {micro_batches:,} micro-batches",
            expected=f"{MOST_ROWS:,} or fewer",
        )


def candidate_count(wanted: int, data: RagData, console: Console) -> int:
    """The number of passages that the index supplies for each row: `wanted`, or the corpus's where it has fewer.
    Raises UserError where the table of all rows would be too large."""
    count = min(wanted, data.corpus_size)
    if count < wanted:
        console.say(f"note: --index_candidates {wanted}: the corpus has {count} passages, so it is {count}", "yellow")
    if len(data.train) * count > MOST_CANDIDATES:
        raise UserError(
            f"--index_candidates {count:,}: too many for {len(data.train):,} rows",
            found=f"a table of {len(data.train) * count:,} passages",
            expected=f"{MOST_CANDIDATES:,} or fewer",
            fix=f"--index_candidates {max(1, MOST_CANDIDATES // len(data.train)):,} or less",
        )
    return count


def ask_for_sharing(generator: Generator | None, config: RunConfig, console: Console) -> None:
    """Turns shared prefixes on; prints the reason where the generator does not support them."""
    if generator and config.scoring.share_prefixes and (reason := share_prefixes(generator)):
        console.say(f"note: this generator cannot share prefixes, so it reads plain sequences: {reason}", "yellow")


def load_models(
    config: RunConfig, objective: Objective, data: RagData, folder: Path, sharding: list[dict[str, Any] | None]
) -> tuple[Retriever, Generator | None]:
    """Opens both models; no generator where the objective needs none. sharding: how each is sharded while its weights
    are read, see `loading_sharded`; None: it is not."""

    def texts() -> Iterable[str]:
        """What a new tokenizer is trained on: the passages, and the training rows' queries and answers."""
        yield from data.texts
        for row in data.train:
            yield row.query
            yield from (" " + a for a in row.answers)

    scratch = folder / "tokenizers"
    retriever = open_retriever(config.model, config.data, texts, scratch, sharding[0])
    return retriever, open_generator(config.model, texts, scratch, sharding[1]) if objective.needs_generator else None


def check_room(
    prompt: Prompt | None, train: TrainTokens, evaluation: EvalTokens, max_new_tokens: int, console: Console
) -> None:
    """Checks before training, on every rank, that the longest query and answer fit into the generator's length; raises
    UserError where they do not. Prints how many passages may have to be truncated further beside them."""
    if prompt is None:
        return
    pairs = [(train.generator_queries, train.generator_answers), (evaluation.generator_queries, None)]
    rooms = []
    for queries, answers in pairs:
        if queries is not None and len(queries):
            longest = queries[int(queries.lengths.argmax())]
            answer = int(answers.lengths.max()) if answers is not None else max_new_tokens + 1
            prompt.context(longest[:0], longest, answer)
            rooms.append(prompt.room(len(longest), answer))
    assert train.generator_passages is not None
    own_lengths = train.generator_passages.lengths - prompt.around["passage"].size
    if cramped := int((own_lengths > min(rooms, default=1 << 30)).sum()):
        console.say(
            f"note: beside the longest query and answer the generator's {prompt.max_length} tokens have room for "
            f"{min(rooms)} of a passage; {cramped} passages are longer and cut further there (the answer is not)",
            style="yellow",
        )


def check_generator_ids(generator: Generator | None, train: TrainTokens, evaluation: EvalTokens) -> None:
    """Raises UserError for a text with a token that the generator has no embedding for."""
    tables = train.generator_passages, train.generator_queries, train.generator_answers, evaluation.generator_queries
    for table in filter(None, tables):
        if generator is not None and len(table.flat):
            check_token_ids(
                generator.tokenizer, int(table.flat.max()), generator.vocabulary, "a text for the generator"
            )
