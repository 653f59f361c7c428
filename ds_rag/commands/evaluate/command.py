"""`ds-rag evaluate --run RUN --data DATA --json F`: retrieval and answers of saved models on held-out rows."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ds_rag.commands.evaluate.results import check_places, sign_result, write_and_show
from ds_rag.commands.saved_run import teacher_cache
from ds_rag.config import BUILTIN, RunConfig
from ds_rag.config.flags import check_builtin
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.data_settings import splits
from ds_rag.data.dataset import RagData, TokenTable, read_evaluation
from ds_rag.data.splits import FOLDS
from ds_rag.data.token_tables import tokenize_evaluation, tokenize_for_reader
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.evaluation.reranking import AnswerScoring, rerank
from ds_rag.index.back_ends import check_factory
from ds_rag.index.building import hash_tokens
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import precision_of
from ds_rag.index.lexical import ABOUT, K1, METHOD, B
from ds_rag.index.store import hash_model, read_index
from ds_rag.models.score_folder import open_scores
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.run.open_saved import BY_WORDS, Saved, WithoutRetriever, open_reader, open_saved
from ds_rag.run.settle_names import read_by, settle_names
from ds_rag.run.split_file import read_split
from ds_rag.runtime import atomic_folders, collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.objectives.over_candidates import temper_from


def already_encoded(saved: Saved, passages: TokenTable, console: Console) -> CorpusIndex | None:
    """The run's own index, if the same weights made its vectors from the same passages in the same precision, so that
    the corpus need not be encoded again; else None. All ranks call it together; only rank 0's index has vectors."""
    index = own_index(saved, passages, console) if collectives.rank() == 0 else None
    if not collectives.from_first(index is not None):
        return None
    console.say(f"using the passages' vectors in {saved.run}/index, which the same weights made")
    return index or CorpusIndex([], len(passages))


def own_index(saved: Saved, passages: TokenTable, console: Console) -> CorpusIndex | None:
    """The same on one rank. If another type of index is asked for, it is built from the stored vectors."""
    if saved.run is None:
        return None
    folder, stage, settings = saved.run / "index", saved.config.evaluation, saved.retriever.settings
    found = atomic_folders.read_manifest(folder) or {}
    wanted = {
        "tokens": hash_tokens(passages),
        "precision": precision_of(saved.retriever),
        "pooling": settings.pooling,
        "normalize": settings.normalize,
    }
    same_kind = found.get("factory") == stage.index_factory
    if any(found.get(key) != value for key, value in wanted.items()) or not (same_kind or found.get("shards") == 0):
        return None
    model = hash_model(saved.run / "retriever")
    if found.get("model_hash") != model:
        return None
    try:
        stored = read_index(folder, model, retriever=saved.retriever).index
    except UserError as error:
        console.say(f"note: the run's index is not used: {error.message}", style="yellow")
        return None
    if same_kind:
        return stored
    part = build_part(np.load(folder / "vectors.npy", mmap_mode="r"), stage.index_factory)
    return CorpusIndex([part] if part else [], len(passages))


def measure(
    saved: Saved | WithoutRetriever, opened: Saved | None, data: RagData, console: Console
) -> tuple[Evaluator, Evaluation]:
    """What the models that were opened find and answer; without a retriever passages are found by BM25."""
    config, generator, prompt = saved.config, saved.generator, saved.prompt
    settings = replace(config.evaluation, lexical_lines=False)
    if generator and config.scoring.share_prefixes and (reason := share_prefixes(generator)):
        console.say(f"note: this generator cannot share prefixes, so it reads plain sequences: {reason}", "yellow")
    if opened is None:
        tokens = tokenize_for_reader(prompt, data, config.data, console)
        evaluator = Evaluator(None, generator, prompt, data, tokens, settings)
        return evaluator, evaluator.run(console)
    check_factory(config.evaluation.index_factory, opened.retriever.hidden_size, data.corpus_size)
    tokens = tokenize_evaluation(opened.retriever, prompt, data, config.data, console)
    evaluator = Evaluator(opened.retriever, generator, prompt, data, tokens, settings)
    index = already_encoded(opened, tokens.passages, console)
    return evaluator, evaluator.measure(index) if index is not None else evaluator.run(console)


def rerank_blocks(
    evaluator: Evaluator, result: Evaluation, config: RunConfig, cache: str | None, console: Console
) -> dict[str, dict[str, float]]:
    """`rerank_prior`, `rerank_posterior`, `rerank_likelihood`. Each passage is read once for all its questions. cache:
    the folder of `--teacher_cache`."""
    generator, prompt, store = evaluator.generator, evaluator.prompt, None
    if cache and generator is not None and prompt is not None:
        store = open_scores(cache, generator, prompt, config.data, console.say)
    how = AnswerScoring(config.data.max_answer_length, temper_from(config.objective), store)
    found = rerank(evaluator, result, how, console)
    console.say("note: rerank_posterior and rerank_likelihood read each row's answer: they measure the generator")
    return {f"rerank_{name}": values for name, values in found.items()}


def held_out_rows(config: RunConfig, builtin: bool, run: Path | None, console: Console) -> RagData:
    """The rows to evaluate on. Where a run has folds, its own division of the documents holds."""
    data, known = config.data, read_split(run)
    same_folds = known is not None and known.wanted.kind == FOLDS and known.wanted.count == data.folds
    if known and same_folds and known.wanted.fold != data.fold:
        console.say(f"warning: this run held out fold {known.wanted.fold}, not this one", style="bold yellow")
    return read_evaluation(data, builtin, config.objective.candidates_from != "batch", known)


def main(args: argparse.Namespace) -> int:
    """Runs the command. Several ranks split the work; rank 0 prints and writes."""
    if collectives.rank() == 0:
        check_places(args.json)
    collectives.start_if_several()
    console = Console(speaks=collectives.rank() == 0)
    by_words = getattr(args, "retriever", None) == BY_WORDS
    saved: Saved | WithoutRetriever = open_reader(args) if by_words else open_saved(args)
    config, opened = saved.config, None if isinstance(saved, WithoutRetriever) else saved
    builtin = config.data.train_data == BUILTIN and config.data.eval_data is None and bool(opened and opened.run)
    if not builtin and config.data.eval_data is None and not splits(config.data):
        raise UserError("no rows to evaluate on", expected="--data FILE or folder")
    if builtin:
        check_builtin(vars(args), "--data FILE evaluates on your own rows")
    if not builtin:
        settle_names(config, console.say, read_by(config))
    data = held_out_rows(config, builtin, opened.run if opened else None, console)
    say_notices(data.notices, console)
    evaluator, result = measure(saved, opened, data, console)
    figures = {"retrieval": result.retrieval, "answers": result.answers, "without_labels": result.without_labels}
    if args.controls:
        figures |= {f"answers_{name}": values for name, values in evaluator.controls(result).items()}
    if config.evaluation.rerank:
        figures |= rerank_blocks(evaluator, result, config, teacher_cache(args), console)
    setting = {"queries": len(data.evaluation), "passages": data.corpus_size, "stage": asdict(config.evaluation)}
    if opened is None or config.evaluation.hybrid != "none":
        setting["bm25"] = ABOUT
        console.say(f"bm25       method {METHOD}, k1 {K1}, b {B}, no stop words, no stemming")
    if collectives.rank() == 0:
        sign_result(evaluator, saved, result)
        write_and_show(args.json, figures, result, setting, console)
    collectives.stop()
    return 0
