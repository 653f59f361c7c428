from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.data.batch import lay_out_cells, pad_right
from ds_rag.models.from_settings import fuse_activations, open_generator, open_pair, open_retriever
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.errors import UserError

MODELS = Path(__file__).resolve().parents[3] / "ds_configs" / "models"
DATA = DataConfig()


def retriever_of(folder, data=DATA, **flags) -> Retriever:
    return open_retriever(ModelConfig(retriever=str(folder), **flags), data, list, Path("unused"))


def describe(folder, pooling: dict, modules=("Transformer", "Pooling", "Normalize"), new: bool = True, **st):
    """sentence-transformers' own files, as its versions before and after 6 write them."""
    module = {"Transformer": "base.modules.transformer", "Pooling": "sentence_transformer.modules.pooling"}
    types = [
        f"sentence_transformers.{module.get(m, 'base.modules.other')}.{m}"
        if new
        else f"sentence_transformers.models.{m}"
        for m in modules
    ]
    paths = ["" if m == "Transformer" else f"{n}_{m}" for n, m in enumerate(modules)]
    listed = [
        {"idx": n, "name": str(n), "path": p, "type": t} for n, (p, t) in enumerate(zip(paths, types, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(st))
    return folder


OLD_NAMES = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}


def old_form(pooling: str) -> dict:
    flags = {f"pooling_mode_{long}": short == pooling for short, long in OLD_NAMES.items()}
    return {"word_embedding_dimension": 32, "pooling_mode_mean_sqrt_len_tokens": False} | flags


def new_form(pooling: str) -> dict:
    name = "lasttoken" if pooling == "last" else pooling
    return {"embedding_dimension": 32, "pooling_mode": name, "include_prompt": True}


@pytest.mark.parametrize("pooling", OLD_NAMES)
@pytest.mark.parametrize("form", [old_form, new_form])
def test_reads_sentence_transformers_folders(form, pooling, model_folder):
    new = form is new_form
    prompts = {"query": "q: ", "document" if new else "passage": "p: "}
    folder = describe(model_folder("bert"), form(pooling), new=new, prompts=prompts)
    s = retriever_of(folder).settings
    assert (s.pooling, s.normalize, s.query_prefix, s.passage_prefix) == (pooling, True, "q: ", "p: ")


def test_no_normalise_module_no_prompts(model_folder):
    folder = describe(model_folder("bert"), new_form("cls"), ("Transformer", "Pooling"))
    s = retriever_of(folder).settings
    assert (s.pooling, s.normalize, s.query_prefix, s.passage_prefix) == ("cls", False, "", "")


def test_folder_that_sentence_transformers_wrote(model_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = describe(model_folder("bert"), old_form("max"), new=False, prompts={"query": "who "})
    theirs = SentenceTransformer(str(folder), device="cpu")
    theirs.save(str(tmp_path / "written"))
    retriever = retriever_of(tmp_path / "written").eval()
    assert (retriever.settings.pooling, retriever.settings.query_prefix) == ("max", "who ")
    ids = [torch.tensor(x).numpy() for x in retriever.tokenize(["leads zor via ?", "x"], "query")]
    with torch.no_grad():
        ours = retriever.embed(pad_right(ids, 0), "query")
    expected = torch.from_numpy(theirs.encode(["leads zor via ?", "x"], prompt_name="query"))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("auto_class", ["AutoModelForCausalLM", "AutoModel"])
def test_a_decoder_pools_its_last_token(kind, auto_class, model_folder, tiny):
    retriever = retriever_of(model_folder(kind, auto_class)).eval()
    assert retriever.settings.pooling == "last"
    texts = ["who leads zor via ?", "x"]
    ids = retriever.tokenize(texts, "query")
    with torch.no_grad():
        ours = retriever.embed(pad_right([torch.tensor(x).numpy() for x in ids], 0), "query")
        plain = [tiny(kind, auto_class) for _ in texts]
        states = [
            m(torch.tensor([x]), output_hidden_states=True).hidden_states[-1][0, -1]
            for m, x in zip(plain, ids, strict=True)
        ]
    torch.testing.assert_close(ours, torch.nn.functional.normalize(torch.stack(states), dim=-1))


def test_flags_win_over_the_folder(model_folder):
    folder = describe(model_folder("bert"), new_form("cls"), prompts={"query": "q: ", "document": "p: "})
    flags = {
        "pooling": "max",
        "normalize": "false",
        "query_prefix": "",
        "passage_prefix": "z ",
        "temperature": 1.0,
    }
    s = retriever_of(folder, DataConfig(max_query_length=9), **flags).settings
    assert (s.pooling, s.normalize, s.query_prefix, s.passage_prefix) == ("max", False, "", "z ")
    assert (s.temperature, s.max_query_length) == (1.0, 9)


def test_lengths_stay_within_model_tokenizer_and_folder(model_folder):
    folder = describe(model_folder("bert"), new_form("cls"))
    data = DataConfig(max_query_length=10, max_passage_length=500)
    assert retriever_of(folder, data).settings.max_passage_length == 64  # the model's positions
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 50, "do_lower_case": false}')
    s = retriever_of(folder, data).settings
    assert (s.max_query_length, s.max_passage_length) == (10, 50)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 40}))
    assert retriever_of(folder, data).settings.max_passage_length == 50  # sentence-transformers' goes before it
    (folder / "sentence_bert_config.json").unlink()
    assert retriever_of(folder, data).settings.max_passage_length == 40


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode": "mean", "include_prompt": False},
    ],
)
def test_a_pooling_that_is_not_supported_can_be_overruled(pooling, model_folder):
    folder = describe(model_folder("bert"), pooling)
    with pytest.raises(UserError, match="pooling that is not supported") as error:
        retriever_of(folder)
    assert "--pooling" in error.value.fix
    assert retriever_of(folder, pooling="mean").settings.pooling == "mean"


@pytest.mark.parametrize("module", ["Dense", "WordEmbeddings"])
def test_modules_that_would_change_the_vectors_are_refused(module, model_folder):
    folder = describe(model_folder("bert"), new_form("mean"), ("Transformer", "Pooling", module, "Normalize"))
    with pytest.raises(UserError, match="module that is not supported") as error:
        retriever_of(folder, pooling="mean")
    assert error.value.found == module


def test_an_unknown_pooling_names_the_known(model_folder):
    with pytest.raises(UserError, match="did you mean 'mean'"):
        retriever_of(model_folder("bert"), pooling="meen")


@pytest.mark.parametrize("flag", ["retriever", "generator"])
def test_no_folder_no_model(flag, tmp_path):
    for path in (tmp_path / "absent", tmp_path, "./bert-base-uncased"):
        with pytest.raises(UserError, match=f"--{flag}: not a model folder") as error:
            if flag == "retriever":
                retriever_of(path)
            else:
                open_generator(ModelConfig(generator=str(path)), list, tmp_path)
        assert str(Path(path)) in str(error.value.found)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '"llama"',
        '{"hidden_size": 32}',
        '{"model_type": "llama"}',
        '{"model_type": "lama", "vocab_size": 512}',
        '{"model_type": "vit", "vocab_size": 512}',
    ],
)
def test_a_wrong_configuration_is_a_user_error(content, tmp_path, texts):
    (tmp_path / "model.json").write_text(content)
    model = ModelConfig(generator=f"config:{tmp_path}/model.json")
    with pytest.raises(UserError, match=r"not a (model|causal LM)"):
        open_generator(model, lambda: texts, tmp_path / "scratch")


def test_a_missing_configuration_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="--generator: no such file"):
        open_generator(ModelConfig(generator=f"config:{tmp_path}"), list, tmp_path)


@pytest.fixture
def built(tmp_path, texts):
    """The tiny models that ship, built twice over the same scratch folder."""
    model = ModelConfig(
        retriever=f"config:{MODELS}/tiny_encoder.json", generator=f"config:{MODELS}/tiny_causal_lm.json"
    )

    def build(**flags):
        torch.manual_seed(0)
        flagged = replace(model, **flags)
        retriever = open_retriever(flagged, DATA, lambda: texts, tmp_path / "scratch")
        return retriever, open_generator(flagged, lambda: texts, tmp_path / "scratch")

    return build


def test_models_from_configurations(built, tmp_path):
    retriever, generator = built()
    assert retriever.passage_encoder is None
    assert (retriever.hidden_size, generator.hidden_size) == (128, 128)
    assert (retriever.settings.pooling, retriever.settings.normalize) == ("mean", True)
    assert generator.max_length == 256
    for part, config in ((retriever, retriever.encoder.config), (generator, generator.lm.config)):
        assert config.vocab_size == len(part.tokenizer) <= 1024
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert (tmp_path / "scratch" / "generator" / "tokenizer_config.json").is_file()
    with torch.no_grad():
        cells = lay_out_cells([torch.arange(4, 9).numpy()], [torch.arange(4, 6).numpy()], 0)
        assert generator.eval()(cells).isfinite().all()


def test_the_tokenizer_is_trained_once(built, tmp_path):
    first = [part.tokenizer("zor via qua")["input_ids"] for part in built()]
    stamps = [p.stat().st_mtime_ns for p in sorted((tmp_path / "scratch").rglob("tokenizer.model"))]
    second = [part.tokenizer("zor via qua")["input_ids"] for part in built()]
    assert (first, len(stamps)) == (second, 2)
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "scratch").rglob("tokenizer.model"))] == stamps


def test_two_encoders(built, model_folder):
    new = built(encoders="two")[0]
    old = retriever_of(model_folder("bert"), encoders="two")
    for retriever, alike in ((new, False), (old, True)):
        pairs = list(zip(retriever.encoder.parameters(), retriever.passage_encoder.parameters(), strict=True))
        assert all(a is not b for a, b in pairs)
        assert all(torch.equal(a, b) for a, b in pairs) == alike


@pytest.mark.parametrize("on", [True, False])
def test_gradient_checkpointing(on, built):
    retriever, generator = built(gradient_checkpointing=on, encoders="two")
    for model in (retriever.encoder, retriever.passage_encoder, generator.lm):
        assert model.is_gradient_checkpointing == on


def test_small_causal_lm_builds(texts, tmp_path):
    model = ModelConfig(generator=f"config:{MODELS}/small_causal_lm.json")
    generator = open_generator(model, lambda: texts, tmp_path)
    assert generator.max_length == 1024
    assert generator.lm.get_output_embeddings().weight is generator.lm.get_input_embeddings().weight


def test_a_run_is_opened_as_it_was_saved(built, tmp_path):
    """The run's own flags were for its start: what it learned, and what it saved, wins."""
    flags = {"pooling": "cls", "query_prefix": "q: ", "learn_temperature": True, "temperature": 0.2}
    retriever, generator = built(encoders="two", **flags)
    with torch.no_grad():
        retriever.log_temperature += 0.5
    retriever.save(tmp_path / "run" / "retriever")
    model = ModelConfig(encoders="two", **flags | {"pooling": "mean", "query_prefix": "z: "})
    again, none = open_pair(tmp_path / "run", model, DATA)
    assert none is None
    expected = replace(retriever.settings, temperature=again.settings.temperature)
    assert again.settings == expected
    assert again.temperature.item() == pytest.approx(retriever.temperature.item())
    now, _ = open_pair(tmp_path / "run", model, DATA, {"temperature", "query_prefix"})
    assert now.settings == replace(expected, temperature=0.2, query_prefix="z: ")
    assert torch.equal(
        again.passage_encoder.get_input_embeddings().weight,
        retriever.passage_encoder.get_input_embeddings().weight,
    )
    generator.save(tmp_path / "run" / "generator")
    _, reopened = open_pair(tmp_path / "run", model, DATA)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(reopened.lm.eval()(ids).logits, generator.lm.eval()(ids).logits)


def test_gpt2s_activation_is_one_operation_and_the_same_function(tiny):
    before, after = tiny("gpt2").double(), tiny("gpt2").double()
    fuse_activations(after)
    assert not any(type(m).__name__ == "NewGELUActivation" for m in after.modules())
    assert sum(isinstance(m, torch.nn.GELU) for m in after.modules()) == 2
    ids = torch.arange(4, 24)[None]
    torch.testing.assert_close(after(ids).logits, before(ids).logits, rtol=1e-12, atol=1e-12)
