from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.data.batch import pad_right
from ds_rag.models.from_settings import open_retriever
from ds_rag.models.pooling import POOLERS
from ds_rag.models.retriever import PASSAGE_ENCODER, Retriever, RetrieverSettings

PROMPTS = {"query": "query: ", "document": "passage: "}
WORDS = [
    "who leads zor via ?",
    "x",
    "the chancellor of mel dor is ebony and the tavern is linen",
    "Ünï 漢 😀",
]


def embed(retriever: Retriever, texts: list[str], side: str) -> torch.Tensor:
    ids = retriever.tokenize(texts, side)
    with torch.no_grad():
        return retriever.eval().embed(pad_right([torch.tensor(x).numpy() for x in ids], 0), side)


def disturb(retriever: Retriever) -> Retriever:
    """As training would: the weights are no longer those of any folder."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in retriever.parameters():
            p += 0.02 * torch.randn_like(p)
    return retriever


def opened(folder):
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def make(tiny, tokenizer):
    """`make(kind, passage_kind, **settings)`: a retriever around tiny random encoders."""

    def build(kind: str = "bert", second: bool = False, **settings) -> Retriever:
        passage_encoder = tiny(kind, "AutoModel", seed=7) if second else None
        settings = {"max_passage_length": 64} | settings  # all that the tiny models have positions for
        return Retriever(tiny(kind, "AutoModel"), tokenizer, RetrieverSettings(**settings), passage_encoder)

    return build


def check_sentence_transformers(retriever: Retriever, folder) -> None:
    retriever.save(folder)
    st = opened(folder)
    for name, side in (("query", "query"), ("document", "passage")):
        theirs = torch.from_numpy(st.encode(WORDS, prompt_name=name))
        torch.testing.assert_close(embed(retriever, WORDS, side), theirs, rtol=0, atol=1e-5)
    again = open_retriever(ModelConfig(retriever=str(folder)), DataConfig(), list, folder)
    assert again.settings == retriever.settings
    torch.testing.assert_close(embed(again, WORDS, "query"), embed(retriever, WORDS, "query"), rtol=0, atol=0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", POOLERS)
def test_saved_folder_gives_the_same_vectors(pooling, normalize, make, tmp_path):
    prompts = {"query_prefix": PROMPTS["query"], "passage_prefix": PROMPTS["document"]}
    retriever = disturb(make(pooling=pooling, normalize=normalize, temperature=0.07, **prompts))
    check_sentence_transformers(retriever, tmp_path)
    norms = embed(retriever, WORDS, "query").norm(dim=-1)
    assert torch.allclose(norms, torch.ones(4)) == normalize
    assert not torch.allclose(embed(retriever, WORDS, "query"), embed(retriever, WORDS, "passage"), atol=1e-3)


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", "true"), ("cls", "false"), ("max", "true")])
def test_minilm_saved_folder_gives_the_same_vectors(pooling, normalize, minilm, tmp_path):
    model = ModelConfig(retriever=str(minilm), pooling=pooling, normalize=normalize, query_prefix="query: ")
    check_sentence_transformers(disturb(open_retriever(model, DataConfig(), list, tmp_path)), tmp_path)


def test_minilm_as_it_comes(minilm, tmp_path):
    """Pooling and normalisation are read from its folder, whose files have the old form."""
    retriever = open_retriever(ModelConfig(retriever=str(minilm)), DataConfig(), list, tmp_path)
    assert (retriever.settings.pooling, retriever.settings.normalize) == ("mean", True)
    theirs = torch.from_numpy(opened(minilm).encode(WORDS))
    torch.testing.assert_close(embed(retriever, WORDS, "query"), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["modernbert", "llama"])
def test_other_families_save_alike(kind, make, tmp_path):
    check_sentence_transformers(disturb(make(kind, pooling="last")), tmp_path)


def test_two_encoders(make, tmp_path):
    retriever = disturb(make(second=True))
    apart = embed(retriever, WORDS, "query") - embed(retriever, WORDS, "passage")
    assert apart.norm(dim=-1).min() > 1e-2
    retriever.save(tmp_path)
    for folder, side in ((tmp_path, "query"), (tmp_path / PASSAGE_ENCODER, "passage")):
        theirs = torch.from_numpy(opened(folder).encode(WORDS))
        torch.testing.assert_close(embed(retriever, WORDS, side), theirs, rtol=0, atol=1e-5)
    again = open_retriever(ModelConfig(retriever=str(tmp_path)), DataConfig(), list, tmp_path)
    for side in ("query", "passage"):
        torch.testing.assert_close(embed(again, WORDS, side), embed(retriever, WORDS, side), rtol=0, atol=0)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_every_trainable_weight_gets_a_gradient(second, learned, make):
    """DeepSpeed counts on it; BERT's pooler is not used, so it must not be trainable."""
    retriever = make(second=second, learn_temperature=learned)
    assert not any(p.requires_grad for p in retriever.encoder.pooler.parameters())
    tokens = pad_right([torch.tensor(x).numpy() for x in retriever.tokenize(WORDS, "query")], 0)
    q_BD, p_ND, temperature = retriever(tokens, tokens)
    ((q_BD @ p_ND.T + torch.eye(4)) / temperature).logsumexp(1).sum().backward()
    idle = [n for n, p in retriever.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    frozen = [n for n, p in retriever.named_parameters() if not p.requires_grad]
    assert all(".pooler." in n for n in frozen)


def test_learned_temperature_is_saved(make, tmp_path):
    retriever = make(learn_temperature=True, temperature=0.2)
    assert retriever.temperature.item() == pytest.approx(0.2)
    with torch.no_grad():
        retriever.log_temperature -= 1.0
    retriever.save(tmp_path)
    again = open_retriever(ModelConfig(retriever=str(tmp_path)), DataConfig(), list, tmp_path)
    assert again.temperature.item() == pytest.approx(0.2 / 2.718281828, rel=1e-5)
    flag = ModelConfig(retriever=str(tmp_path), temperature=0.5)
    assert open_retriever(flag, DataConfig(), list, tmp_path).temperature.item() == pytest.approx(0.5)


def test_the_weight_of_bm25_is_an_output_and_is_saved(make, tmp_path):
    retriever = make(lexical_weight=0.8)
    tokens = retriever.tokens(WORDS, "query")
    *_, temperature, weight = retriever(tokens, None)
    weight.square().backward()
    assert float(weight.detach()) == pytest.approx(0.8) and temperature.ndim == weight.ndim == 0
    assert float(retriever.log_lexical_weight.grad) == pytest.approx(2 * 0.8**2)
    with torch.no_grad():
        retriever.log_lexical_weight += 1.0
    retriever.save(tmp_path)

    def weight_of(**flags: Any) -> float:
        return float(open_retriever(ModelConfig(str(tmp_path), **flags), DataConfig(), list, tmp_path).lexical_weight)

    assert weight_of() == pytest.approx(0.8 * math.e, rel=1e-5)
    assert weight_of(lexical_prior=3.0) == pytest.approx(3.0) and weight_of(lexical_prior=0.0) == 0.0
    own = json.loads((tmp_path / "ds_rag.json").read_text())
    del own["lexical_weight"]  # as earlier versions wrote it
    (tmp_path / "ds_rag.json").write_text(json.dumps(own))
    again = open_retriever(ModelConfig(str(tmp_path)), DataConfig(), list, tmp_path)
    assert not again.reads_words and len(again(tokens, None)) == 3
    assert repr(again.settings) == repr(replace(again.settings, lexical_weight=2.0)), "older indexes stay valid"


def test_fixed_temperature_is_exact_in_every_precision(make):
    retriever = make(temperature=0.05).bfloat16()
    assert retriever.temperature.item() == torch.tensor(0.05).item()
    assert not any("temperature" in name for name in retriever.state_dict())


def test_saves_the_state_it_is_given(make, tmp_path):
    retriever = make(learn_temperature=True)
    expected = embed(retriever, WORDS, "query")
    state = {name: tensor.clone() for name, tensor in retriever.state_dict().items()}
    state["log_temperature"] = torch.tensor(0.1).log()
    disturb(retriever).bfloat16().save(tmp_path, state)
    again = open_retriever(ModelConfig(retriever=str(tmp_path)), DataConfig(), list, tmp_path)
    torch.testing.assert_close(embed(again, WORDS, "query"), expected, rtol=0, atol=0)
    assert again.temperature.item() == pytest.approx(0.1)
    assert opened(tmp_path)[0].auto_model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "llama"])
@pytest.mark.parametrize("pooling", POOLERS)
def test_embeddings_do_not_depend_on_padding(kind, pooling, make, texts):
    retriever = make(kind, pooling=pooling)
    many = embed(retriever, WORDS + texts[:4], "passage")
    alone = torch.cat([embed(retriever, [t], "passage") for t in WORDS + texts[:4]])
    torch.testing.assert_close(many, alone, rtol=0, atol=1e-5)
    assert (many[0] - many[1]).norm() > 1e-2


def test_texts_are_cut_at_their_own_length_prefix_counted(make, texts):
    prefixes = {"query_prefix": "query: ", "passage_prefix": "the "}
    retriever = make(max_query_length=7, max_passage_length=11, **prefixes)
    long = " ".join(texts[:4])
    for side, length in (("query", 7), ("passage", 11)):
        ids = retriever.tokenize([long, "x"], side)
        whole = retriever.tokenizer(prefixes[f"{side}_prefix"] + long)["input_ids"]
        assert ids[0] == whole[:length]
        assert len(ids[1]) < length
