"""From a configuration to the parts of a training run: data, tokens, models, DeepSpeed configurations, engines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds_rag.config import OptimConfig, RunConfig, deepspeed_config
from ds_rag.config.effects import idle
from ds_rag.config.schedules import Schedule
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.dataset import RagData, read_data
from ds_rag.data.loader import Loader, TrainTokens
from ds_rag.data.prompt import Prompt, make_prompt
from ds_rag.data.token_tables import EvalTokens, tokenize_run
from ds_rag.engines.joint import Engines
from ds_rag.engines.setup import deepspeed_files, make_engines
from ds_rag.index.faiss_index import check_factory
from ds_rag.index.spelling import check_spelling
from ds_rag.models.generator import Generator
from ds_rag.models.loading import load_generator, load_retriever
from ds_rag.models.probe import check_looks_back
from ds_rag.models.retriever import Retriever
from ds_rag.models.sharded import is_sharded, made_whole
from ds_rag.models.shared_prefix.probe import share_prefixes
from ds_rag.models.tokenizer import check_known
from ds_rag.run.index_candidates import Candidates
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.log import Console
from ds_rag.step.generator_side import Scoring
from ds_rag.step.objective import Objective
from ds_rag.step.two_pass import Embedding

MOST_REPEATS = 16  # of a row in one micro-batch
MOST_ROWS = 10**7  # of a step
MOST_CANDIDATES = 10**9  # in the table of all rows, 4 bytes each


@dataclass
class Parts:
    """What the training loop works with."""

    data: RagData
    loader: Loader
    eval_tokens: EvalTokens
    objective: Objective
    prompt: Prompt | None
    retriever: Retriever
    generator: Generator | None
    engines: Engines
    embedding: Embedding
    scoring: Scoring | None
    total_steps: int
    schedule: Schedule
    device: torch.device
    candidates: Candidates | None = None  # where the index supplies them


def assemble(config: RunConfig, console: Console, folder: Path, device: torch.device) -> Parts:
    """Builds everything, the same on every rank. Raises UserError for what the user can mend."""
    objective = Objective(config.objective, collectives.world())
    raws, knowns = deepspeed_files(config)
    schedule = Schedule(config.stage.refresh_index)
    check_spelling(config.stage.index_factory)
    source = config.objective.candidates_from
    needs = objective.spec.needs_positive, objective.needs_generator
    for line in idle(config):
        console.say(f"note: {line}", style="yellow")
    data = read_data(config.data, config.is_builtin, *needs, from_index=source != "batch")
    say_notices(data.notices, console)
    check_labels(config, data, console)
    torch.manual_seed(config.optim.seed)
    pieces = [deepspeed_config.while_loading(raw, known) for raw, known in zip(raws, knowns, strict=True)]
    retriever, generator = load_models(config, objective, data, folder, pieces)
    for name, model, piece in zip(("retriever", "generator"), (retriever, generator), pieces, strict=True):
        if note := made_whole(name, getattr(config.model, name), model, piece):
            console.say(note, style="yellow")
    prompt = make_prompt(config.model, generator.tokenizer, generator.max_length) if generator else None
    in_pieces = generator is not None and is_sharded(generator)  # then it works only once its engine is there
    if not in_pieces:
        ask_for_sharing(generator, config, console)
    share = collectives.world() if config.stage.index_shards == "keep" else 1
    check_factory(config.stage.index_factory, retriever.hidden_size, max(1, data.corpus_size // share))
    train_tokens, eval_tokens = tokenize_run(retriever, prompt, data, config.data, console)
    check_generator_ids(generator, train_tokens, eval_tokens)
    check_room(prompt, train_tokens, eval_tokens, config.stage.max_new_tokens, console)
    optim = config.optim
    check_batch(len(data.train), optim)
    loader = Loader(
        data.train,
        train_tokens,
        optim.per_device_train_batch_size,
        optim.gradient_accumulation_steps,
        collectives.rank(),
        collectives.world(),
        optim.seed,
        retriever.tokenizer.pad_token_id,
        config.objective.pool == "world",
        keep_own=source == "both",
    )
    candidates = None
    if source != "batch":
        count = candidate_count(config.objective.index_candidates, data, console)
        batch = config.stage.per_device_eval_batch_size
        candidates = Candidates(loader, count, data.corpus_size, batch)
    total = optim.max_steps if optim.max_steps > 0 else max(1, round(optim.num_train_epochs * loader.steps_per_epoch))
    learns = what_learns(config, objective)
    engines = make_engines(config, learns, retriever, generator, raws, knowns, total, folder, device)
    if in_pieces:
        check_looks_back(generator, f"--generator {config.model.generator}")
        ask_for_sharing(generator, config, console)
    embedding = Embedding(engines, config.scoring.retriever_chunk)
    scoring = make_scoring(config, engines, generator, console) if generator else None
    return Parts(
        data,
        loader,
        eval_tokens,
        objective,
        prompt,
        retriever,
        generator,
        engines,
        embedding,
        scoring,
        total,
        schedule,
        device,
        candidates,
    )


def what_learns(config: RunConfig, objective: Objective) -> dict[str, bool]:
    """Which of the two models are trained. Raises UserError where none is."""
    frozen = config.model.freeze
    learns = {
        "retriever": frozen != "retriever",
        "generator": frozen != "generator" and objective.needs_generator and objective.generator_learns,
    }
    if not any(learns.values()):
        raise UserError("nothing learns", found=f"--objective {objective.name} --freeze {frozen}")
    return learns


def check_labels(config: RunConfig, data: RagData, console: Console) -> None:
    """Raises UserError where InfoNCE is asked for by flag and no row has a labelled passage; a recipe's is told of."""
    if not config.objective.contrastive_weight or any(row.positives for row in data.train):
        return
    what = "--contrastive_weight: no training row has a labelled passage"
    if "contrastive_weight" in config.flags:
        raise UserError(what, expected="a column positive, passage or positives", fix="label them, or leave it out")
    console.say(f"note: {what}, so it has no effect", style="yellow")


def check_batch(rows: int, optim: OptimConfig) -> None:
    """Raises UserError for batches that only repeat the few rows there are, and take all memory to do so."""
    batch, whole = optim.per_device_train_batch_size, optim.gradient_accumulation_steps * collectives.world()
    if batch > MOST_REPEATS * rows:
        raise UserError(
            "--per_device_train_batch_size: far more than there are rows",
            found=f"{batch:,}, of {rows:,} training rows",
            expected=f"{rows:,} or less: a row that is twice in a micro-batch is its own rival",
        )
    if batch * whole > MOST_ROWS:
        raise UserError(
            "--gradient_accumulation_steps: too many rows a step",
            found=f"{batch:,} a micro-batch x {whole:,} micro-batches",
            expected=f"{MOST_ROWS:,} or fewer",
        )


def candidate_count(wanted: int, data: RagData, console: Console) -> int:
    """Passages that the index supplies for each row: as many as asked for, of as many as there are."""
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
    """Turns the shared prefixes on where the generator can read them, and else says why not."""
    if generator and config.scoring.share_prefixes and (reason := share_prefixes(generator)):
        console.say(f"note: this generator cannot share prefixes, so it reads plain sequences: {reason}", "yellow")


def make_scoring(config: RunConfig, engines: Engines, generator: Generator, console: Console) -> Scoring:
    pad, seed, processes = generator.tokenizer.pad_token_id, config.optim.seed, collectives.local_world()
    return Scoring(engines, generator, config.scoring, pad, seed, console.say, processes)


def load_models(
    config: RunConfig, objective: Objective, data: RagData, folder: Path, pieces: list[dict[str, Any] | None]
) -> tuple[Retriever, Generator | None]:
    """Both models; no generator where the objective needs none. pieces: for each, see `loading_in_pieces`."""

    def texts() -> Iterable[str]:
        """What a tokenizer is trained on: the passages, and what is asked and answered of them in training."""
        yield from data.texts
        for row in data.train:
            yield row.query
            yield from (" " + a for a in row.answers)

    scratch = folder / "tokenizers"
    retriever = load_retriever(config.model, config.data, texts, scratch, pieces[0])
    return retriever, load_generator(config.model, texts, scratch, pieces[1]) if objective.needs_generator else None


def check_room(
    prompt: Prompt | None, train: TrainTokens, evaluation: EvalTokens, max_new_tokens: int, console: Console
) -> None:
    """The longest query and answer fit the generator; said here, on every rank, rather than in mid-training. Passages
    for which there may be too little room beside them are counted."""
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
            check_known(generator.tokenizer, int(table.flat.max()), generator.vocabulary, "a text for the generator")
