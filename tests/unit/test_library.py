"""The library that others import: what `import ds_rag` gives, that its examples work, and its numbers."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  what it says at its first import is no part of an example
import numpy as np
import pytest
import torch
from hub_stand_in import files_of
from small import TEXTS, finished_run, small_generator, small_retriever

import ds_rag
from ds_rag import losses

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "transformers", "deepspeed", "faiss", "datasets")
PUBLIC = [name for name in ds_rag.__all__ if name not in ("losses", "DEFAULT_TEMPLATE", "UserError")]
LOSSES = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name)) or name == "PositiveOnly"]


def imported_by(code: str) -> set[str]:
    """The heavy libraries that a new interpreter has loaded after this code."""
    code += f"\nimport sys\nprint('loaded', *(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import ds_rag; dir(ds_rag); ds_rag.__version__; ds_rag.UserError; ds_rag.DEFAULT_TEMPLATE",
        "from ds_rag.commands.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: assert not end.code",
        "from ds_rag.commands.cli import main\nassert main(['plan', '--retriever', 'bge-base', '--generator', "
        "'qwen-7b', '--gpu', 'a100-40gb', '--gpus', '8']) == 0",
    ],
    ids=["import", "help", "plan"],
)
def test_nothing_heavy_is_imported_before_it_is_used(code):
    assert imported_by(code) == set()


def test_a_name_is_loaded_on_its_first_use():
    assert "torch" in imported_by("import ds_rag; ds_rag.losses.rag_sequence")


def test_every_public_name_is_there_and_an_unknown_one_is_an_error():
    for name in ds_rag.__all__:
        assert name in dir(ds_rag) and getattr(ds_rag, name) is not None
    assert ds_rag.losses is losses
    with pytest.raises(AttributeError, match="no attribute 'Retreiver'"):
        ds_rag.Retreiver  # noqa: B018


def test_type_checkers_are_told_what_the_table_tells():
    tree = ast.parse(Path(ds_rag.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        told |= {alias.name: line.module for alias in line.names}
    told["losses"] = "ds_rag.losses"
    assert told == ds_rag._PLACES
    assert sorted(told) == sorted(ds_rag.__all__) and (ROOT / "ds_rag/py.typed").is_file()


def run_example(thing: Any, names: dict[str, Any]) -> None:
    """The docstring's example gives what it says, and there is one."""
    test = doctest.DocTestFinder(recurse=False).find(thing, thing.__name__, globs=names)
    assert test and test[0].examples, f"{thing.__name__} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test[0], out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_of_public_names(name, tmp_path):
    generator = small_generator()
    names = {"ds_rag": ds_rag, "torch": torch, "np": np, "folder": tmp_path}
    names |= {"retriever": small_retriever(), "generator": generator}
    names["prompt"] = ds_rag.Prompt(generator.tokenizer, max_length=generator.max_length)
    run_example(getattr(ds_rag, name), names)


@pytest.mark.parametrize("name", LOSSES)
def test_the_examples_of_losses(name):
    run_example(getattr(losses, name), {"torch": torch} | vars(losses))


QUERIES = ["who leads zor ?", "where does kelp grow ?"]
PASSAGES = [list(TEXTS), [TEXTS[2], TEXTS[0], "bob leads via"]]
ANSWERS = ["ann", "pool nine of zor"]


def prompt_of(generator: ds_rag.Generator) -> ds_rag.Prompt:
    return ds_rag.Prompt(generator.tokenizer, max_length=generator.max_length)


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "shared prefixes"])
def test_scores_of_cells_are_those_of_a_plain_forward_of_transformers(shared):
    """Each pair by itself: the whole text tokenised at once, log-softmax of the model's logits, no padding."""
    generator = small_generator().eval()
    tokenizer = generator.tokenizer
    if shared:
        assert ds_rag.share_prefixes(generator) is None
    cells = ds_rag.cells(prompt_of(generator), QUERIES, PASSAGES, ANSWERS)
    logp_BKA = ds_rag.score_cells(generator, cells)
    assert logp_BKA.shape == cells.shape == (2, 3, int(cells.answer_mask_BA.sum(1).max()))
    for i, (query, row, answer) in enumerate(zip(QUERIES, PASSAGES, ANSWERS, strict=True)):
        for j, passage in enumerate(row):
            text = ds_rag.DEFAULT_TEMPLATE.format(passage=passage, query=query)
            whole = tokenizer(f"{text} {answer}")["input_ids"] + [tokenizer.eos_token_id]
            own = int(cells.answer_mask_BA[i].sum())
            assert tokenizer.decode(whole[-own:-1]).strip() == answer
            logits_TV = generator.lm(torch.tensor([whole])).logits[0]
            wanted_A = logits_TV.log_softmax(-1)[range(len(whole) - own - 1, len(whole) - 1), whole[-own:]]
            torch.testing.assert_close(logp_BKA[i, j, :own], wanted_A, rtol=1e-4, atol=1e-5)


def test_shared_prefixes_give_the_gradients_of_plain_sequences():
    grads = []
    for shared in (False, True):
        generator = small_generator()
        if shared:
            assert ds_rag.share_prefixes(generator) is None
        cells = ds_rag.cells(prompt_of(generator), QUERIES, PASSAGES, ANSWERS)
        scores_BK = torch.tensor([[0.5, -0.2, 0.1], [0.0, 0.3, 0.4]], requires_grad=True)
        logp_BKA = ds_rag.score_cells(generator, cells)
        losses.rag_sequence(scores_BK, logp_BKA, cells.answer_mask_BA).mean().backward()
        grads.append([scores_BK.grad, *(p.grad for p in generator.parameters())])
    for plain, other in zip(*grads, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-3, atol=1e-5)
        assert plain.abs().max() > 0


@pytest.mark.parametrize(
    ("queries", "passages", "answers", "word"),
    [
        (["q"], [["a"], ["b"]], ["x"], "1 queries, 2 lists of passages, 1 answers"),
        (["q", "r"], [["a"], ["b", "c"]], ["x", "y"], "unequal"),
        (["q"], [[]], ["x"], "without a passage"),
        (["q"], ["a"], ["x"], "one text"),
        (["q"], [["a"]], [""], "empty answer"),
        (["q " * 200], [["a"]], ["x"], "exceed the generator's length"),
    ],
)
def test_cells_that_cannot_be_made_are_errors(queries, passages, answers, word):
    with pytest.raises(ds_rag.UserError, match=word):
        ds_rag.cells(prompt_of(small_generator()), queries, passages, answers, max_query_length=400)


def test_an_index_finds_what_numpy_finds(tmp_path):
    retriever = small_retriever().eval()
    texts = [f"{word} grows in pool {n}" for n in range(12) for word in ("kelp", "flint", "ebony")]
    index = ds_rag.Index.build(retriever, texts, ids=[f"p{n}" for n in range(len(texts))])
    queries = ["who grows in pool 7 ?", "where is kelp ?", "flint"]
    with torch.no_grad():
        p_ND = torch.cat([retriever.embed(retriever.tokens([t], "passage"), "passage") for t in texts]).numpy()
        q_BD = torch.cat([retriever.embed(retriever.tokens([q], "query"), "query") for q in queries]).numpy()
    scores_BN = q_BD @ p_ND.T
    scores_Bk, numbers_Bk = index.search(queries, k=5)
    np.testing.assert_allclose(scores_Bk, -np.sort(-scores_BN, axis=1)[:, :5], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores_BN, numbers_Bk, 1), scores_Bk, atol=1e-5)
    np.testing.assert_array_equal(index.search(q_BD, k=5)[1], numbers_Bk)
    assert index.search(queries, k=99)[1].shape == (3, len(texts)) and len(index) == len(texts)
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")  # in place of itself
    again = ds_rag.Index.open(tmp_path / "index", retriever)
    assert (again.texts, again.ids) == (texts, index.ids)
    for one, other in zip(again.search(queries, k=5), (scores_Bk, numbers_Bk), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_approximate_index_is_saved_and_opened(tmp_path):
    retriever, texts = small_retriever(), [f"{word} in pool {n}" for n in range(20) for word in ("kelp", "flint")]
    flat, graph = (ds_rag.Index.build(retriever, texts, factory=factory) for factory in ("flat", "hnsw"))
    graph.save(tmp_path / "graph")
    again = ds_rag.Index.open(tmp_path / "graph", retriever)
    assert again.stored.manifest.factory == "hnsw"
    np.testing.assert_array_equal(again.search(["kelp in pool 3"], k=5)[1], graph.search(["kelp in pool 3"], k=5)[1])
    best, found = (set(index.search(["kelp in pool 3"], k=10)[1][0].tolist()) for index in (flat, again))
    assert len(best & found) >= 8
    with pytest.raises(ds_rag.UserError, match="copy its folder"):
        again.save(tmp_path / "other")


def test_an_index_is_opened_only_by_the_weights_that_made_it(tmp_path):
    index = ds_rag.Index.build(small_retriever(seed=0), TEXTS)
    index.save(tmp_path / "index")
    with pytest.raises(ds_rag.UserError, match="made by other weights"):
        ds_rag.Index.open(tmp_path / "index", small_retriever(seed=1))
    with pytest.raises(ds_rag.UserError, match="does not fit the retriever"):
        ds_rag.Index.open(tmp_path / "index", small_retriever(seed=0, pooling="cls"))
    with pytest.raises(ds_rag.UserError, match="not replaced by an index"):
        (tmp_path / "mine.txt").touch()
        index.save(tmp_path)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda r: ds_rag.Index.build(r, []), "0 passages"),
        (lambda r: ds_rag.Index.build(r, ["a", "b"], ids=["x", "x"]), "2 passages, 1 different"),
        (lambda r: ds_rag.Index.build(r, ["a"]).search("a"), "one text"),
        (lambda r: ds_rag.Index.build(r, ["a"]).search(np.zeros((1, 3), np.float32)), "vectors of another shape"),
    ],
)
def test_an_index_that_cannot_be_is_an_error(build, word):
    with pytest.raises(ds_rag.UserError, match=word):
        build(small_retriever())


def test_figures_are_those_of_the_command(tmp_path, monkeypatch):
    """The same models, rows and corpus, by `ds-rag evaluate` and in memory; the run's index opens, too."""
    from ds_rag.commands import cli
    from ds_rag.runtime import folder_lock

    run = finished_run(tmp_path)
    rows = [{"query": f"where {n} ?", "answer": "x", "positive": text} for n, text in enumerate(TEXTS)]
    models = ["--retriever", str(run / "retriever"), "--generator", str(run / "generator")]
    data = ["--data", str(tmp_path / "rows.jsonl"), "--corpus", str(tmp_path / "corpus.jsonl")]
    options = ["--max_new_tokens", "2", "--top_k", "2", "--json", str(tmp_path / "figures.json")]
    assert cli.main(["evaluate", *models, *data, *options]) == 0
    folder_lock.release(run)
    theirs = json.loads((tmp_path / "figures.json").read_text())
    retriever, generator = ds_rag.load_retriever(run / "retriever"), ds_rag.load_generator(run / "generator")
    found = ds_rag.evaluate(retriever, generator, rows, [*TEXTS], max_new_tokens=2, top_k=2)
    assert found.retrieval == theirs["retrieval"] and found.answers == theirs["answers"]
    assert 0 < found.retrieval["mrr@10"] <= 1 and set(found.answers) == {"exact_match", "f1", "rougeL"}
    alone = ds_rag.evaluate(retriever, None, rows, [{"id": str(n), "text": t} for n, t in enumerate(TEXTS)])
    assert alone.retrieval == found.retrieval and alone.answers == {}
    index = ds_rag.Index.open(run / "index", retriever)
    assert index.texts == [*TEXTS] and index.ids == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("rows", "options", "word"),
    [
        ([], {}, "no rows"),
        ([{"query": "q", "positive": "p"}, {"query": "", "positive": "p"}], {}, "row 2: 'query' is empty"),
        ([{"question": "q"}], {}, "positive"),
        (["q"], {}, "row 1: not a mapping"),
        ([{"query": "q", "positive": "p"}], {"topk": 3}, "unknown option 'topk'"),
        ([{"query": "q", "positive": "p"}], {"top_k": 0}, "--top_k"),
    ],
)
def test_an_evaluation_that_cannot_be_is_an_error(rows, options, word):
    with pytest.raises(ds_rag.UserError, match=word):
        ds_rag.evaluate(small_retriever(), None, rows, **options)


def test_models_open_by_folder_with_the_flags_as_options(tmp_path):
    small_retriever(query_prefix="q: ").save(tmp_path)
    first, second = (
        ds_rag.load_retriever(str(tmp_path), **options)
        for options in ({}, {"pooling": "cls", "normalize": False, "temperature": 0.5, "encoders": "two"})
    )
    assert (first.settings.query_prefix, first.settings.pooling, first.settings.normalize) == ("q: ", "mean", True)
    assert (second.settings.pooling, second.settings.normalize) == ("cls", False)
    assert second.temperature.item() == 0.5 and second.passage_encoder is not None


@pytest.mark.parametrize(
    ("source", "options", "word"),
    [
        ("no/such/folder", {}, "no such folder"),
        (Path("no") / "folder", {}, "no such folder"),
        ("config:ds_configs/models/tiny_encoder.json", {}, "a new model"),
        (".", {"poling": "cls"}, "did you mean 'pooling'"),
        (".", {"temperature": -1.0}, "--temperature"),
    ],
)
def test_a_model_that_is_not_there_is_an_error(source, options, word):
    with pytest.raises(ds_rag.UserError, match=word):
        ds_rag.load_retriever(source, **options)


def test_a_name_on_the_hub_is_fetched_once_into_its_cache(hub, tmp_path, set_hub):
    small_retriever().save(tmp_path / "stored")
    hub.put("someone/model", files_of(tmp_path / "stored"), ref="v1")
    assert ds_rag.load_retriever("someone/model", revision="v1").hidden_size == 16
    set_hub(HF_HUB_OFFLINE="1")
    assert ds_rag.load_retriever("someone/model@v1").hidden_size == 16


def test_a_name_that_the_hub_does_not_give_is_an_error():
    """Here the hub is not asked (tests/conftest.py)."""
    with pytest.raises(ds_rag.UserError, match="neither a path here nor in the hub's cache"):
        ds_rag.load_generator("nobody-at-all/no-such-model")
