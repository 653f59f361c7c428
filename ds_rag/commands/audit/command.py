"""`ds-rag audit`: before anything is trained, can this generator teach this retriever on these rows?"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_rag.commands.audit.picture import check_picture, write_picture
from ds_rag.commands.audit.tables import show
from ds_rag.commands.saved_run import teacher_cache
from ds_rag.config.flags import settings_of
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.dataset import RagData, read_evaluation
from ds_rag.evaluation.audit import audit
from ds_rag.evaluation.audit_pool import ASKED, BOTH, AuditOptions, collect, read_questions, sample_rows
from ds_rag.evaluation.audit_scores import AuditScores
from ds_rag.evaluation.audit_verdict import verdict
from ds_rag.evaluation.cached_reader import CachedReader
from ds_rag.index.back_ends import check_factory
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.run.corpus_to_search import choose_corpus
from ds_rag.run.open_saved import BY_WORDS, Saved, open_saved
from ds_rag.run.report.page import MADE_HERE, write_report
from ds_rag.run.report.teaching import AUDIT, PICTURE
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_json, write_json

KEYS = ("gold_first", "verdict")  # of the JSON, by which it is known again


def rows_to_audit(data: RagData, ignore_labels: bool) -> tuple[list[int], bool]:
    """(numbers of rows with an answer, whether they are labelled): those with a labelled passage where there are any,
    unless labels are ignored. Raises UserError where there is none."""
    answered = [n for n, row in enumerate(data.evaluation) if row.answers]
    labelled = [n for n in answered if data.evaluation[n].positives]
    if not answered:
        raise UserError(
            "--data: no row has an answer, and an audit is about what passages make of answers",
            found=f"{len(data.evaluation)} rows",
            expected="a column answer or answers",
        )
    use_labels = bool(labelled) and not ignore_labels
    return (labelled if use_labels else answered), use_labels


def gather(args: argparse.Namespace, saved: Saved, data: RagData, console: Console) -> tuple[AuditScores, bool]:
    """The scores of a sample of rows, and whether their labels are used."""
    config, generator, prompt = saved.config, saved.generator, saved.prompt
    assert generator is not None and prompt is not None
    rows, labelled = rows_to_audit(data, args.ignore_labels)
    documents = [data.cluster_of(data.evaluation[r]) for r in rows]
    rows = [rows[n] for n in sample_rows(documents, args.audit_sample, args.audit_seed)]
    if reason := share_prefixes(generator):
        console.say(f"note: this generator cannot share prefixes, so it reads plain sequences: {reason}", "yellow")
    stage = config.evaluation
    wanted = AuditOptions(
        args.audit_candidates,
        args.audit_candidates_from,
        labelled,
        stage.per_device_eval_batch_size,
        stage.index_factory,
        stage.vector_cache,
    )
    reader = CachedReader(generator, prompt, config.data, teacher_cache(args))
    scores, sample = collect(saved.retriever, reader, data, rows, wanted, console)
    if args.question_likelihood:
        asked_QW = read_questions(reader, sample, console)
        scores = replace(scores, others=scores.others | {ASKED: asked_QW, BOTH: asked_QW + scores.answer_QW})
    return scores, labelled


def setting_of(args: argparse.Namespace, saved: Saved, scores: AuditScores, labelled: bool) -> dict[str, Any]:
    """What was audited, for the JSON and the console."""
    named = [name for name in scores.clusters or [] if name is not None]
    return {
        "labels_used": labelled,
        "rows": len(scores.lengths_Q),
        "documents": len(set(named)),
        "candidates": scores.K,
        "candidates_from": args.audit_candidates_from,
        "seed": args.audit_seed,
        "temperature": scores.temperature,
        "prompt_template": saved.config.model.prompt_template,
        "max_answer_length": saved.config.data.max_answer_length,
        "max_passage_length": saved.config.data.max_passage_length,
    }


def add_to_report(run: Path, result: dict[str, Any], scores: AuditScores, console: Console) -> None:
    """Keeps the audit in the run's folder, and writes the run's report again where it has one. A note where another
    file is in the way, or the folder cannot be written: the audit itself is done."""
    page = run / "report.html"
    try:
        check_json(str(run / AUDIT), KEYS)
        write_json(str(run / AUDIT), result)
        write_picture(result, scores, run / PICTURE)
        if page.is_file() and MADE_HERE in page.read_text(encoding="utf-8", errors="replace"):
            console.say(f"report     {write_report(run)}")
    except (OSError, UserError) as error:
        console.say(f"note: the audit was not added to the run's report: {str(error).splitlines()[0]}", "yellow")


def main(args: argparse.Namespace) -> int:
    """Runs the command. Several ranks split the work; rank 0 prints and writes."""
    if "eval_data" not in args:
        raise UserError("no rows to audit", expected="--data FILE or folder")
    if getattr(args, "retriever", None) == BY_WORDS:
        raise UserError("--retriever bm25: nothing that could be taught", fix="a folder; --candidates_from bm25")
    if collectives.rank() == 0:
        check_json(args.json, KEYS)
        check_picture(args.plot)
    collectives.start_if_several()
    console = Console(speaks=collectives.rank() == 0)
    saved = open_saved(args)
    if saved.generator is None:
        raise UserError("no generator to audit", expected="--generator FOLDER, or a --run that has one")
    choose_corpus(saved, settings_of(args), console)
    data = read_evaluation(saved.config.data, False, from_index=True)
    say_notices(data.notices, console)
    check_factory(saved.config.evaluation.index_factory, saved.retriever.hidden_size, data.corpus_size)
    scores, labelled = gather(args, saved, data, console)
    if collectives.rank() == 0:
        figures = audit(scores)
        result = {
            "setting": setting_of(args, saved, scores, labelled),
            **figures,
            "verdict": verdict(figures, labelled),
        }
        show(result, console)
        write_json(args.json, result)
        if args.plot is not None:
            write_picture(result, scores, Path(args.plot))
        if saved.run is not None:
            add_to_report(saved.run, result, scores, console)
    collectives.stop()
    return 0
