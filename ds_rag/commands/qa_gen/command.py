"""`ds-rag qa-gen`: a language model writes questions about passages, filters keep the good ones, rows come out.

Generations are kept beside `--out`, so that a second call, after a stop or with further documents, writes only what is
new. The filters run over everything each time; what costs a reading is kept with `--teacher_cache`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ds_rag.commands.qa_gen.checks import check_arguments, generations_file
from ds_rag.commands.qa_gen.opening import Setup, open_setup
from ds_rag.commands.qa_gen.sifting import sift
from ds_rag.commands.qa_gen.tables import show, show_expectation
from ds_rag.config import DataConfig
from ds_rag.data.dataset import TokenTable
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import tokenize_field
from ds_rag.evaluation.questions.asking import Style, writing_prompt
from ds_rag.evaluation.questions.batches import (
    CPU_ROWS,
    choose_passages,
    make_batches,
    questions_of,
    write_missing,
)
from ds_rag.evaluation.questions.examples import EXTRACTIVE
from ds_rag.evaluation.questions.generations import Generations
from ds_rag.evaluation.questions.rows import hold_out, rejected_row, row_of, split_file
from ds_rag.evaluation.questions.sieve import Question, Sieve
from ds_rag.evaluation.questions.writer import Drawing, Writer
from ds_rag.models.score_folder import key_of
from ds_rag.runtime import collectives, folder_lock
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import write_json, writing

LEAST_ROOM = 16  # tokens of a passage


def main(args: argparse.Namespace) -> int:
    """Runs the command. Several ranks split the work; rank 0 prints and writes."""
    check_arguments(args)
    collectives.start_if_several()
    console = Console(speaks=collectives.rank() == 0)
    file = generations_file(args.out)
    if collectives.rank() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock.holding_place(file) if collectives.rank() == 0 else nullcontext():
        setup = open_setup(args, console)
        figures, questions = write_questions(setup, file)
        sieve = sift(setup, questions)
        finish(setup, sieve, figures)
    collectives.stop()
    return 0


def write_questions(setup: Setup, file: Path) -> tuple[dict[str, Any], list[Question]]:
    """(figures, all questions as they were written): those that `file` lacks are generated. All ranks together."""
    args, config, console, generator = setup.args, setup.config, setup.console, setup.generator
    chosen = choose_passages(setup.corpus, args.max_passages, args.min_words, args.qa_seed)
    if not chosen:
        raise UserError(
            "no passage is long enough to ask about",
            found=f"{len(setup.corpus):,} passages of fewer than {args.min_words} words",
            fix="a lower --min_words, or larger passages",
        )
    style = Style(args.answers, config.model.chat_template)
    prompt = writing_prompt(generator.tokenizer, setup.shots, style, generator.max_length)
    words = args.max_answer_words if args.answers == EXTRACTIVE else 0  # no other answer is cut by them
    drawing = Drawing(args.qa_temperature, args.top_p, args.max_tokens, words, args.qa_seed)
    size = show_expectation(generator, console)
    generations = Generations(file, settings_of_writing(setup, prompt, style, drawing), console.say)
    passages = [setup.corpus[n] for n in chosen]
    texts = [passage.text for passage in passages]
    tokens = tokenize_field(prompt, "passage", texts, config.data, console, f"{len(texts):,} passages")
    each, rows = args.questions_per_passage, config.evaluation.per_device_eval_batch_size
    on_cpu = generator.lm.device.type == "cpu"
    batches = make_batches(passages, tokens, each, min(rows, CPU_ROWS) if on_cpu else rows)
    writer = Writer(generator, prompt, style, drawing)
    if writer.misfit:
        console.say(f"note: this generator reads every prompt from its beginning: {writer.misfit}", "yellow")
    check_room(writer, tokens, console)
    began = time.monotonic()
    new, made = write_missing(writer.write, tokens, batches, generations, console)
    seconds = time.monotonic() - began
    questions = questions_of(list(zip(chosen, texts, strict=True)), each, generations, style)
    known = len(questions) - new
    speed = f", {60 * new / seconds:.0f} a minute, {made / seconds:.0f} tokens/s" if new else ""
    console.say(f"questions  {new:,} written{speed}; {known:,} were in {file}")
    figures = {
        "passages": len(setup.corpus),
        "asked": len(chosen),
        "questions": len(questions),
        "written": new,
        "tokens": made,
        "seconds": round(seconds, 2),
        "generator_parameters": size,
    }
    return figures, questions


def check_room(writer: Writer, passages: TokenTable, console: Console) -> None:
    """Says how many passages are cut because the prompt's examples leave no more room. Raises UserError where they
    leave next to none."""
    room, most = writer.room, writer.prompt.max_length
    if room < LEAST_ROOM:
        raise UserError(
            "no room for a passage beside the prompt's examples",
            found=f"{max(0, room)} of the generator's {most} tokens",
            expected=f"at least {LEAST_ROOM}",
            fix="fewer --shots, a smaller --max_tokens, or a generator that reads more",
        )
    lengths = [writer.prompt.own_length("passage", passages[n]) for n in range(len(passages))]
    if cut := sum(length > room for length in lengths):
        text = f"{cut:,} passages are cut at {room} tokens beside the prompt's examples, of {most} in all"
        console.say(f"note: {text}: fewer --shots leaves more", "yellow")


def settings_of_writing(setup: Setup, prompt: Prompt, style: Style, drawing: Drawing) -> dict[str, Any]:
    """All that a generation depends on, beside its passage and its number. All ranks together."""
    lengths = DataConfig(max_passage_length=setup.config.data.max_passage_length)  # no other length is read
    return {**key_of(setup.generator, prompt, lengths), "style": vars(style), "drawing": vars(drawing)}


def finish(setup: Setup, sieve: Sieve, figures: dict[str, Any]) -> None:
    """Prints the table and writes the files. All ranks together, with the same error on each: RunError where nothing is
    left, UserError where too little is left to hold some out."""
    args, corpus, kept, first = setup.args, setup.corpus, sieve.kept, collectives.rank() == 0
    show(sieve, setup.console)
    figures |= {"filters": sieve.summary(), "kept": len(kept), "rows": 0, "eval_rows": 0}
    if first and args.rejected is not None:
        write_lines(args.rejected, [rejected_row(q, corpus) for q in sieve.rejected])
    if first and not kept:
        write_json(args.json, figures)
    if not kept:
        raise sieve.nothing_left()
    split, held_out = None, [False] * len(kept)
    if args.eval_out is not None:
        split, held_out = hold_out(kept, corpus, args.qa_eval_fraction, split_file(Path(args.eval_out)))
        collectives.barrier()  # all have read the earlier split
    rows = [row_of(q, corpus) for q, out in zip(kept, held_out, strict=True) if not out]
    figures |= {"rows": len(rows), "eval_rows": sum(held_out)}
    if not first:
        return
    if split is not None:
        write_lines(args.eval_out, [row_of(q, corpus) for q, out in zip(kept, held_out, strict=True) if out])
        with writing(split_file(Path(args.eval_out))) as stream:
            stream.write(json.dumps(split.to_json(), indent=1) + "\n")
    write_lines(args.out, rows)
    write_json(args.json, figures)
    setup.console.say(f"{len(rows):,} rows in {args.out}: --train_data {args.out} --corpus {args.passages}")
    if split is not None:
        setup.console.say(f"{sum(held_out):,} rows of other documents in {args.eval_out}: --eval_data {args.eval_out}")


def write_lines(path: str, rows: Sequence[dict[str, Any]]) -> None:
    with writing(Path(path)) as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
