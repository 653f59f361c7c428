"""`ds-rag evaluate --run RUN --data DATA --json F`: retrieval and answers of saved models on held-out rows."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ds_rag import dist
from ds_rag.config import BUILTIN
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.dataset import read_evaluation
from ds_rag.errors import UserError
from ds_rag.evaluate import Evaluator, tokenize_evaluation
from ds_rag.flags import check_builtin
from ds_rag.index.faiss_index import check_factory
from ds_rag.log import Console
from ds_rag.saved import open_saved, write_json


def main(args: argparse.Namespace) -> int:
    """The command; its flags are in cli.py. Several ranks share the work; rank 0 speaks and writes."""
    dist.start_if_several()
    console = Console(speaks=dist.rank() == 0)
    saved = open_saved(args, {"controls", "json"})
    config = saved.config
    builtin = config.data.train_data == BUILTIN and config.data.eval_data is None and saved.run is not None
    if not builtin and config.data.eval_data is None:
        raise UserError("no rows to evaluate on", expected="--data FILE or folder")
    if builtin:
        check_builtin(vars(args), "--data FILE evaluates on your own rows")
    data = read_evaluation(config.data, builtin, config.objective.candidates_from != "batch")
    say_notices(data.notices, console)
    check_factory(config.stage.index_factory, saved.retriever.hidden_size, data.corpus_size)
    tokens = tokenize_evaluation(saved.retriever, saved.prompt, data, config.data, console)
    evaluator = Evaluator(saved.retriever, saved.generator, saved.prompt, data, tokens, config.stage, console)
    result = evaluator.run(progress=True)
    figures = {"retrieval": result.retrieval, "answers": result.answers}
    if args.controls:
        figures |= {f"answers_{name}": values for name, values in evaluator.controls().items()}
    rows = [[part, name, f"{value:.3f}"] for part, values in figures.items() for name, value in values.items()]
    title = f"{len(data.evaluation)} queries against {data.corpus_size} passages"
    console.table(title, ["part", "metric", "value"], rows)
    if not result.retrieval:
        console.say("note: no row has a labelled passage, so retrieval cannot be scored", style="yellow")
    what = {"queries": len(data.evaluation), "passages": data.corpus_size, "stage": asdict(config.stage)}
    if dist.rank() == 0:
        write_json(args.json, {**figures, "setting": what})
    dist.stop()
    return 0
