"""`ds-rag evaluate --run RUN --data DATA --json F`: retrieval and answers of saved models on held-out rows."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from ds_rag.commands.evaluate.index_to_search import already_encoded
from ds_rag.commands.evaluate.results import check_places, sign_result, write_and_show
from ds_rag.commands.saved_run import teacher_cache
from ds_rag.config import BUILTIN, RunConfig
from ds_rag.config.flags import check_builtin, settings_of
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.data_settings import splits
from ds_rag.data.dataset import RagData, read_evaluation
from ds_rag.data.splits import FOLDS
from ds_rag.data.token_tables import tokenize_evaluation, tokenize_for_reader
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.evaluation.reranking import AnswerScoring, rerank
from ds_rag.index.back_ends import check_factory
from ds_rag.index.lexical import ABOUT, K1, METHOD, B
from ds_rag.index.vector_folder import open_vector_store, say_account
from ds_rag.models.score_folder import open_scores
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.run.corpus_to_search import choose_corpus
from ds_rag.run.moved_paths import check_found
from ds_rag.run.open_saved import BY_WORDS, Saved, WithoutRetriever, open_reader, open_saved
from ds_rag.run.settle_names import read_by, settle_names
from ds_rag.run.split_file import read_split
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.objectives.over_candidates import temper_from


def measure(
    saved: Saved | WithoutRetriever, opened: Saved | None, data: RagData, named: str | None, console: Console
) -> tuple[Evaluator, Evaluation]:
    """What the models that were opened find and answer; without a retriever passages are found by BM25. named: the
    index to search."""
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
    if (index := already_encoded(opened, tokens.passages, named, console)) is not None:
        return evaluator, evaluator.measure(index)
    store = open_vector_store(settings.vector_cache, opened.retriever, console.say)
    result = evaluator.run(console, store)
    say_account(store, console)
    return evaluator, result


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
    """The rows to evaluate on. Where a run has folds, its own division of the documents holds. With a corpus, rows need
    no passages."""
    data, known = config.data, read_split(run)
    same_folds = known is not None and known.wanted.kind == FOLDS and known.wanted.count == data.folds
    if known and same_folds and known.wanted.fold != data.fold:
        console.say(f"warning: this run held out fold {known.wanted.fold}, not this one", style="bold yellow")
    return read_evaluation(data, builtin, from_index=True, known=known)


def main(args: argparse.Namespace) -> int:
    """Runs the command. Several ranks split the work; rank 0 prints and writes."""
    if collectives.rank() == 0:
        check_places(args.json)
    collectives.start_if_several()
    console = Console(speaks=collectives.rank() == 0)
    by_words = getattr(args, "retriever", None) == BY_WORDS
    if by_words and args.index:
        raise UserError("--index together with --retriever bm25", fix="leave one of them out: BM25 searches texts")
    saved: Saved | WithoutRetriever = open_reader(args) if by_words else open_saved(args)
    config, opened = saved.config, None if isinstance(saved, WithoutRetriever) else saved
    builtin = config.data.train_data == BUILTIN and config.data.eval_data is None and bool(opened and opened.run)
    if not builtin and config.data.eval_data is None and not splits(config.data):
        raise UserError("no rows to evaluate on", expected="--data FILE or folder")
    if builtin:
        check_builtin(vars(args), "--data FILE evaluates on your own rows")
    if not builtin:
        choose_corpus(saved, settings_of(args), console)
    if opened and opened.run and not builtin:
        check_found(opened.run, config.data, settings_of(args))
    if not builtin:
        settle_names(config, console.say, read_by(config))
    data = held_out_rows(config, builtin, opened.run if opened else None, console)
    say_notices(data.notices, console)
    evaluator, result = measure(saved, opened, data, args.index, console)
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
