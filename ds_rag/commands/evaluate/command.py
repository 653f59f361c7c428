"""`ds-rag evaluate --run RUN --data DATA --json F`: retrieval and answers of saved models on held-out rows."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import numpy as np

from ds_rag.config import BUILTIN
from ds_rag.config.flags import check_builtin
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.dataset import TokenTable, read_evaluation
from ds_rag.data.inputs import splits
from ds_rag.data.splits import FOLDS
from ds_rag.data.token_tables import tokenize_evaluation
from ds_rag.evaluation.evaluator import Evaluator
from ds_rag.index.back_ends import check_factory
from ds_rag.index.building import hash_tokens
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import precision_of
from ds_rag.index.store import hash_model, read_index
from ds_rag.run.open_saved import Saved, open_saved
from ds_rag.run.split_file import read_split
from ds_rag.runtime import atomic_folders, collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_json, write_json


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


def main(args: argparse.Namespace) -> int:
    """Runs the command. Several ranks split the work; rank 0 prints and writes."""
    if collectives.rank() == 0:
        check_json(args.json, ("retrieval", "setting"))
    collectives.start_if_several()
    console = Console(speaks=collectives.rank() == 0)
    saved = open_saved(args)
    config = saved.config
    builtin = config.data.train_data == BUILTIN and config.data.eval_data is None and saved.run is not None
    if not builtin and config.data.eval_data is None and not splits(config.data):
        raise UserError("no rows to evaluate on", expected="--data FILE or folder")
    if builtin:
        check_builtin(vars(args), "--data FILE evaluates on your own rows")
    from_index = config.objective.candidates_from != "batch"
    known = read_split(saved.run)
    trained_on = known is not None and known.wanted.kind == FOLDS and config.data.fold != known.wanted.fold
    if known and trained_on and config.data.folds == known.wanted.count:
        console.say(f"warning: this run held out fold {known.wanted.fold}, not this one", style="bold yellow")
    data = read_evaluation(config.data, builtin, from_index, known)
    say_notices(data.notices, console)
    check_factory(config.evaluation.index_factory, saved.retriever.hidden_size, data.corpus_size)
    tokens = tokenize_evaluation(saved.retriever, saved.prompt, data, config.data, console)
    evaluator = Evaluator(saved.retriever, saved.generator, saved.prompt, data, tokens, config.evaluation)
    index = already_encoded(saved, tokens.passages, console)
    result = evaluator.measure(index) if index is not None else evaluator.run(console)
    figures = {"retrieval": result.retrieval, "answers": result.answers}
    if args.controls:
        figures |= {f"answers_{name}": values for name, values in evaluator.controls().items()}
    rows = [[part, name, f"{value:.3f}"] for part, values in figures.items() for name, value in values.items()]
    title = f"{len(data.evaluation)} queries against {data.corpus_size} passages"
    console.table(title, ["part", "metric", "value"], rows)
    if not result.retrieval:
        console.say("note: no row has a labelled passage, so retrieval cannot be measured", style="yellow")
    what = {"queries": len(data.evaluation), "passages": data.corpus_size, "stage": asdict(config.evaluation)}
    if collectives.rank() == 0:
        write_json(args.json, {**figures, "setting": what})
    collectives.stop()
    return 0
