"""Every key of a sentence-transformers folder, side by side with `SentenceTransformer`: the same vectors and the same
order of passages, or a refusal that names the key; and a saved folder that gives both again.

Covered: do_lower_case, similarity (cosine with and without Normalize, dot, euclidean, manhattan), the older file names,
lengths (also per side), weights in a subfolder, prompts (more than two, default, passage's names), poolings of both
forms in test_from_settings.py, order and kinds of modules, truncate_dim, tasks, modalities, arguments, tokenizers by
name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.data.batch import pad_right
from ds_rag.models.from_settings import open_retriever, retriever_texts
from ds_rag.models.retriever import Retriever
from ds_rag.models.st_folder import OWN_SETTINGS, TRANSFORMER_FILES, transformer_settings
from ds_rag.runtime.errors import UserError

QUERIES = ["Who leads ZOR via ?", "which TAVERN is opal", "x"]
PASSAGES = ["The Chancellor of Mel Dor is Ebony", "the tavern of Syl Lisk is OPAL", "the anthem", "X Y z", "Zor Via"]
PLAIN = ("Transformer", "Pooling")
UNIT = ("Transformer", "Pooling", "Normalize")
MakeFolder = Callable[..., Path]


@pytest.fixture
def folder(model_folder: MakeFolder) -> MakeFolder:
    """`folder(modules, transformer=..., whole=...)`: a sentence-transformers folder with these keys."""

    def make(
        modules: tuple[str, ...] = PLAIN,
        transformer: dict[str, Any] | None = None,
        whole: dict[str, Any] | None = None,
        name: str = TRANSFORMER_FILES[0],
        inside: str = "",
        pooling: dict[str, Any] | None = None,
        kind: str = "bert",
    ) -> Path:
        made = model_folder(kind)
        if inside:
            shutil.copytree(made, made.parent / "st" / inside)
            made = made.parent / "st"
        paths = {"Transformer": inside} | {kind: f"{n}_{kind}" for n, kind in enumerate(modules) if n}
        listed = [
            {"idx": n, "name": str(n), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
            for n, kind in enumerate(modules)
        ]
        write(made / "modules.json", listed)
        write(made / paths.get("Pooling", "x") / "config.json", pooling or {"word_embedding_dimension": 32})
        if transformer is not None:
            write(made / inside / name, transformer)
        if whole is not None:
            write(made / "config_sentence_transformers.json", whole)
        return made

    return make


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def ours(folder: Path, **flags: Any) -> Retriever:
    data = DataConfig(max_query_length=64, max_passage_length=64)
    return open_retriever(ModelConfig(retriever=str(folder), **flags), data, list, folder).eval()


def theirs(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def embed(retriever: Retriever, texts: list[str], side: str) -> torch.Tensor:
    ids = [torch.tensor(x).numpy() for x in retriever.tokenize(texts, side)]
    with torch.no_grad():
        return retriever.embed(pad_right(ids, retriever.tokenizer.pad_token_id), side)


def check_equal(folder: Path, tmp_path: Path, **flags: Any) -> Retriever:
    """Vectors, order, and both again after saving. Returns ours."""
    retriever, st = ours(folder, **flags), theirs(folder)
    retriever.save(tmp_path / "saved")
    again = ours(tmp_path / "saved")
    assert again.settings == retriever.settings
    for own, other in ((retriever, st), (retriever, theirs(tmp_path / "saved")), (again, st)):
        pairs = [
            (embed(own, QUERIES, "query"), torch.from_numpy(other.encode_query(QUERIES))),
            (embed(own, PASSAGES, "passage"), torch.from_numpy(other.encode_document(PASSAGES))),
        ]
        for found, wanted in pairs:
            if own.settings.normalize:  # a similarity of cosine is the product of unit vectors
                wanted = torch.nn.functional.normalize(wanted, dim=-1)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        scores_BN = pairs[0][0] @ pairs[1][0].T
        if "similarity_fn_name" in json.loads((folder / "config_sentence_transformers.json").read_text()):
            wanted_BN = other.similarity(pairs[0][1], pairs[1][1])
            assert torch.equal(scores_BN.argsort(descending=True), wanted_BN.argsort(descending=True))
    return retriever


def test_do_lower_case(folder: MakeFolder, tmp_path: Path) -> None:
    lower = folder(transformer={"do_lower_case": True, "max_seq_length": 60}, whole={})
    retriever = check_equal(lower, tmp_path)
    assert json.loads((tmp_path / "saved" / OWN_SETTINGS).read_text())["do_lower_case"]
    assert retriever.tokenize(["ZOR via"], "query") == retriever.tokenize(["zor VIA"], "query")
    tokenizer, settings = retriever_texts(ModelConfig(retriever=str(lower)), DataConfig())  # as `check` reads it
    assert settings.do_lower_case and tokenizer("ZOR")["input_ids"] == tokenizer("zor")["input_ids"]
    plain = ours(folder(transformer={"do_lower_case": False}, whole={}))
    apart = embed(plain, QUERIES, "query") - embed(retriever, QUERIES, "query")
    assert apart.norm(dim=-1).max() > 0.05


@pytest.mark.parametrize("modules", [PLAIN, UNIT])
@pytest.mark.parametrize("similarity", ["cosine", "dot", None])
def test_similarity(similarity: str | None, modules: tuple[str, ...], folder: MakeFolder, tmp_path: Path) -> None:
    whole = {} if similarity is None else {"similarity_fn_name": similarity}
    retriever = check_equal(folder(modules, whole=whole), tmp_path)
    assert retriever.settings.normalize == (similarity == "cosine" or modules == UNIT)


def test_euclidean_of_unit_vectors_ranks_as_they_do(folder: MakeFolder, tmp_path: Path) -> None:
    check_equal(folder(UNIT, whole={"similarity_fn_name": "euclidean"}), tmp_path)


def test_the_older_file_names(folder: MakeFolder, tmp_path: Path) -> None:
    made = folder(whole={})
    for name in reversed(TRANSFORMER_FILES):  # the first that is there counts
        write(made / name, {"max_seq_length": len(name), "do_lower_case": True})
        assert transformer_settings(made)["max_seq_length"] == len(name)
    for name in TRANSFORMER_FILES[:-1]:
        (made / name).unlink()
    write(made / TRANSFORMER_FILES[-1], {"max_seq_length": 5, "do_lower_case": True})
    assert check_equal(made, tmp_path).settings.max_passage_length == 5


def test_a_length_of_the_folder_goes_before_the_tokenizers(folder: MakeFolder, tmp_path: Path) -> None:
    made = folder(transformer={"max_seq_length": 7}, whole={})
    settings = json.loads((made / "tokenizer_config.json").read_text())
    write(made / "tokenizer_config.json", settings | {"model_max_length": 4})
    assert check_equal(made, tmp_path).settings.max_query_length == 7


def test_lengths_of_either_side(folder: MakeFolder) -> None:
    """Saved they are flags of the run, as ever: sentence-transformers' file gets the longer one."""
    made = folder(transformer={"query_length": 4, "document_length": 6}, whole={})
    retriever, st = ours(made), theirs(made)
    assert (retriever.settings.max_query_length, retriever.settings.max_passage_length) == (4, 6)
    for side, wanted in (("query", st.encode_query(QUERIES)), ("passage", st.encode_document(QUERIES))):
        torch.testing.assert_close(embed(retriever, QUERIES, side), torch.from_numpy(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_weights_in_a_subfolder(kind: str, folder: MakeFolder, tmp_path: Path) -> None:
    keys = {"max_seq_length": 9, "do_lower_case": True}
    whole = {"similarity_fn_name": "cosine"}
    made = folder(UNIT, keys, whole, "sentence_roberta_config.json", "0_Transformer", kind=kind)
    assert not (made / "config.json").exists()
    check_equal(made, tmp_path)


def test_all_prompts_are_kept(folder: MakeFolder, tmp_path: Path) -> None:
    prompts = {"query": "who ", "document": "that ", "clustering": "group ", "sts": "like "}
    whole = {"prompts": prompts, "default_prompt_name": "clustering", "similarity_fn_name": "dot"}
    check_equal(folder(whole=whole), tmp_path)
    st = theirs(tmp_path / "saved")
    assert st.prompts == prompts and st.default_prompt_name == "clustering"
    again = theirs(tmp_path / "bert-AutoModel")
    assert (st.encode(QUERIES) == again.encode(QUERIES)).all()


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_a_passages_prompt_by_any_of_its_names(name: str, folder: MakeFolder) -> None:
    made = folder(whole={"prompts": {"query": "who ", name: "that "}})
    wanted = torch.from_numpy(theirs(made).encode(PASSAGES, prompt_name=name))
    torch.testing.assert_close(embed(ours(made), PASSAGES, "passage"), wanted, rtol=0, atol=1e-5)


def test_a_default_prompt_that_may_be_meant_for_either_side(folder: MakeFolder, tmp_path: Path) -> None:
    """`encode` puts it before everything, `encode_document` before nothing."""
    made = folder(whole={"prompts": {"query": "who "}, "default_prompt_name": "query"})
    with pytest.raises(UserError, match="default_prompt_name, and no prompt for a passage") as error:
        ours(made)
    assert '--passage_prefix ""' in error.value.fix
    assert ours(made, passage_prefix="").settings.passage_prefix == ""
    check_equal(made, tmp_path, passage_prefix="")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "manhattan": ({"whole": {"similarity_fn_name": "manhattan"}}, "similarity_fn_name"),
    "euclidean": ({"whole": {"similarity_fn_name": "euclidean"}}, "similarity_fn_name"),
    "truncate_dim": ({"whole": {"truncate_dim": 16}}, "truncate_dim"),
    "sparse": ({"whole": {"model_type": "SparseEncoder"}}, "model_type"),
    "default prompt": ({"whole": {"prompts": {"query": "q"}, "default_prompt_name": "z"}}, "default_prompt_name"),
    "task": ({"transformer": {"transformer_task": "fill-mask"}}, "transformer_task"),
    "modality": ({"transformer": {"modality_config": {"message": {}}}}, "modality_config"),
    "processing": ({"transformer": {"processing_kwargs": {"text": {"max_length": 3}}}}, "processing_kwargs"),
    "expansion": ({"transformer": {"query_expansion": {"strategy": "fixed"}}}, "query_expansion"),
    "arguments": ({"transformer": {"tokenizer_args": {"use_fast": False}}}, "use_fast in tokenizer_args"),
    "model arguments": ({"transformer": {"config_kwargs": {"num_hidden_layers": 1}}}, "num_hidden_layers"),
    "tokenizer": ({"transformer": {"tokenizer_name_or_path": "org/name"}}, "tokenizer_name_or_path"),
    "unknown": ({"transformer": {"something_new": 1}}, "something_new"),
    "no length": ({"transformer": {"max_seq_length": -1}}, "max_seq_length is no length"),
    "a length as text": ({"transformer": {"document_length": "16"}}, "document_length is no length"),
    "no truth value": ({"transformer": {"do_lower_case": "false"}}, "do_lower_case"),
    "prompts in a list": ({"whole": {"prompts": ["query: "]}}, "prompts that are none"),
    "a number for a prompt": ({"whole": {"prompts": {"query": 3}}}, "prompts that are none"),
    "no pooling": ({"modules": ("Transformer",)}, "modules in an order that is not supported"),
    "order": ({"modules": ("Transformer", "Normalize", "Pooling")}, "modules in an order that is not supported"),
    "dense": ({"modules": ("Transformer", "Pooling", "Dense")}, "a module that is not supported"),
    "outside": ({"inside": "", "transformer": None, "modules": ("Transformer", "Pooling")}, "a folder outside"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(case: str, folder: MakeFolder) -> None:
    keys, named = REFUSED[case]
    made = folder(**keys)
    if case == "outside":
        listed = json.loads((made / "modules.json").read_text())
        write(made / "modules.json", [listed[0] | {"path": "../elsewhere"}, *listed[1:]])
    with pytest.raises(UserError, match="--retriever") as error:
        ours(made)
    assert named in str(error.value)


def test_a_flag_chooses_where_the_folder_cannot_be_followed(folder: MakeFolder) -> None:
    made = folder(whole={"similarity_fn_name": "manhattan"})
    assert ours(made, normalize="true").settings.normalize and not ours(made, normalize="false").settings.normalize
    assert ours(folder(("Transformer", "Normalize")), pooling="cls", normalize="true").settings.pooling == "cls"


@pytest.mark.parametrize(
    ("transformer", "whole"),
    [
        ({"model_args": {"dtype": "float32"}, "tokenizer_args": {}, "config_args": {}, "unpad_inputs": False}, {}),
        ({"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}, {"truncate_dim": None}),
    ],
)
def test_keys_without_effect(
    transformer: dict[str, Any], whole: dict[str, Any], folder: MakeFolder, tmp_path: Path
) -> None:
    check_equal(folder(transformer=transformer, whole=whole), tmp_path)


def test_module_code_of_the_folder_is_refused(folder: MakeFolder) -> None:
    made = folder()
    listed = json.loads((made / "modules.json").read_text())
    for kind in ("mine.Transformer", "elsewhere.models.Pooling"):
        write(made / "modules.json", [listed[0] | {"type": kind}, *listed[1:]])
        with pytest.raises(UserError, match="names code of its own") as error:
            ours(made, trust_remote_code=True)
        assert error.value.found == kind


def test_a_run_saved_before_is_opened_as_it_was(folder: MakeFolder, tmp_path: Path) -> None:
    """Its ds_rag.json has none of the newer keys: nothing it had not honoured then is honoured now."""
    ours(folder(whole={})).save(tmp_path / "run")
    file = tmp_path / "run" / OWN_SETTINGS
    newer = {"do_lower_case", "prompts", "default_prompt_name", "limits"}
    write(file, {k: v for k, v in json.loads(file.read_text()).items() if k not in newer})
    write(tmp_path / "run" / "sentence_bert_config.json", {"max_seq_length": 3, "do_lower_case": True})
    settings = ours(tmp_path / "run").settings
    assert not settings.do_lower_case and settings.max_query_length == 64
    assert "prompts" not in repr(settings) and "lower" not in repr(settings)  # an index's fingerprint is of this
