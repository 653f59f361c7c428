"""Models that are not what they are taken for: refused by what they are, before weights are read, or by what they do.

Covered. Generators: masked LMs (BERT, RoBERTa and their kind, also saved as a "causal LM"), encoder-decoders (BART,
T5), classifiers of a causal type, decoders that read an encoder, types that look ahead by their own code (XLNet, XLM);
from a folder and from config:FILE. Retrievers: BART, DPR, CLIP, a projected OPT; T5's encoder works. Names of code to
be fetched: attention, experts, sub-models, kernels of quantised weights, an adapter's base; config:FILE too, and the
hub is out of reach. Ids and positions beyond a table; sizes beyond the machine, in folders, config:FILE and `plan`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ds_rag.commands import cli
from ds_rag.config import DataConfig, ModelConfig
from ds_rag.data.batch import list_cells, pad_right
from ds_rag.models.adapters import ADAPTER_FILE
from ds_rag.models.architecture import AFTER_PADDING, usable_positions
from ds_rag.models.behaviour_checks import check_looks_back
from ds_rag.models.from_settings import open_generator, open_retriever
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.errors import UserError

MakeFolder = Callable[..., Path]
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NARROW: dict[str, Any] = {"d_model": 32, "max_position_embeddings": 64} | {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()
}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


@pytest.fixture
def any_folder(tokenizer: Any, tmp_path: Path) -> MakeFolder:
    """`any_folder(kind, auto, **settings)`: a random model of any type with the tests' tokenizer."""

    def make(kind: str, auto: str, **settings: Any) -> Path:
        torch.manual_seed(0)
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config = transformers.AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer)} | ids | settings)
        made = getattr(transformers, auto)
        (made.from_config(config) if auto.startswith("Auto") else made(config)).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


def generator_of(folder: Path | str, **flags: Any) -> Generator:
    scratch = Path(str(folder).removeprefix("config:")).parent / "tokenizers"
    return open_generator(ModelConfig(generator=str(folder), **flags), lambda: ["a text"] * 50, scratch)


def retriever_of(folder: Path | str, **flags: Any) -> Retriever:
    return open_retriever(ModelConfig(retriever=str(folder), **flags), DataConfig(), list, Path("unused")).eval()


def edit(file: Path, **keys: Any) -> None:
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (settings | keys).items() if v is not ...}))


@pytest.mark.parametrize(
    ("kind", "auto", "settings", "why"),
    [
        ("bert", "AutoModelForMaskedLM", WIDE, "a masked LM"),
        ("bert", "BertLMHeadModel", WIDE, "a masked LM"),  # built and saved as a causal LM
        ("roberta", "AutoModelForMaskedLM", WIDE, "a masked LM"),
        ("electra", "AutoModelForMaskedLM", WIDE, "a masked LM"),
        ("distilbert", "AutoModelForMaskedLM", {"dim": 32, "n_heads": 4, "hidden_dim": 48}, "no causal LM of this"),
        ("bart", "AutoModelForSeq2SeqLM", NARROW, "an encoder-decoder"),
        ("t5", "AutoModelForSeq2SeqLM", T5, "an encoder-decoder"),
        ("bert", "BertLMHeadModel", WIDE | {"is_decoder": True, "add_cross_attention": True}, "reads an encoder's"),
        ("llama", "AutoModelForSequenceClassification", WIDE, "those of LlamaForSequenceClassification"),
        ("xlm", "XLMWithLMHeadModel", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_langs": 1}, "a masked LM"),
        ("xlnet", "XLNetLMHeadModel", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "a later token moves"),
    ],
)  # fmt: skip
def test_what_is_no_causal_lm(kind: str, auto: str, settings: Any, why: str, any_folder: MakeFolder) -> None:
    folder = any_folder(kind, auto, **settings)
    with pytest.raises(UserError, match="not a causal LM") as error:
        generator_of(folder)
    assert why in str(error.value.found)


def test_a_masked_lms_type_that_was_made_a_decoder_is_one(any_folder: MakeFolder) -> None:
    """Its folder's weights are what is opened."""
    for folder in (
        any_folder("bert", "BertLMHeadModel", **WIDE, is_decoder=True),
        any_folder("bart", "BartForCausalLM", **NARROW, is_encoder_decoder=False, is_decoder=True),
    ):
        found, stored = generator_of(folder).lm.state_dict(), load_file(folder / "model.safetensors")
        assert stored and all(torch.equal(found[name], tensor) for name, tensor in stored.items())


def test_a_model_whose_code_looks_ahead(tiny: Callable[..., Any], tokenizer: Any) -> None:
    """Whatever its configuration says: Llama with every mask taken away."""
    check_looks_back(Generator(tiny("llama"), tokenizer), "--generator x")
    seeing = tiny("llama", attn_implementation="sdpa")
    forward = seeing.model.forward

    def sees_all(input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: Any) -> Any:
        B, T = input_ids.shape
        return forward(input_ids=input_ids, attention_mask=torch.ones(B, 1, T, T, dtype=torch.bool), **more)

    seeing.model.forward = sees_all
    with pytest.raises(UserError, match="not a causal LM"):
        check_looks_back(Generator(seeing, tokenizer), "--generator x")


@pytest.mark.parametrize("kind", ["bert", "t5", "vit"])
def test_a_new_one_that_is_no_causal_lm(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"model_type": kind, "vocab_size": 300} | WIDE))
    with pytest.raises(UserError, match="not a causal LM"):
        open_generator(ModelConfig(generator=f"config:{tmp_path}/model.json"), lambda: ["abc"] * 9, tmp_path)


@pytest.mark.parametrize(
    ("kind", "auto", "settings", "why"),
    [
        ("bart", "AutoModel", NARROW, "an encoder-decoder of which transformers has no encoder alone"),
        ("dpr", "DPRQuestionEncoder", WIDE, "one vector a text"),
        ("clip", "AutoModel", {}, "no hidden_size"),
        ("opt", "AutoModel", WIDE | {"word_embed_proj_dim": 16, "ffn_dim": 48}, "states of shape (1, 8, 16), not"),
    ],
)
def test_what_is_no_text_encoder(kind: str, auto: str, settings: Any, why: str, any_folder: MakeFolder) -> None:
    if kind == "clip":
        part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        settings = {"text_config": part, "vision_config": part | {"image_size": 8, "patch_size": 4}}
    with pytest.raises(UserError, match="not a text encoder") as error:
        retriever_of(any_folder(kind, auto, **settings))
    assert why in str(error.value.found)


@pytest.mark.parametrize("auto", ["AutoModel", "T5EncoderModel"])
def test_t5s_encoder_is_a_retriever(auto: str, any_folder: MakeFolder) -> None:
    folder = any_folder("t5", auto, **T5)
    retriever = retriever_of(folder)
    ids = retriever.tokenize(["who leads zor via ?"], "query")
    with torch.no_grad():
        ours = retriever.embed(pad_right([torch.tensor(ids[0]).numpy()], 0), "query")[0]
        states = transformers.T5EncoderModel.from_pretrained(folder)(torch.tensor(ids)).last_hidden_state[0]
    torch.testing.assert_close(ours, torch.nn.functional.normalize(states.mean(0), dim=-1))


HUB = "kernels-community/flash-attn"
NAMES: dict[str, dict[str, Any]] = {
    "attn_implementation": {"attn_implementation": HUB},
    "_attn_implementation": {"_attn_implementation": HUB},
    "of a part": {"attn_implementation": {"": "sdpa", "text_config": HUB}},
    "of a sub-model": {"text_config": {"attn_implementation": HUB}},
    "deeper": {"parts": [{"vision": {"_attn_implementation": f"paged|{HUB}@main:kernel"}}]},
    "another owner's": {"attn_implementation": "someone/kernel"},
    "flash attention that is not installed": {"_attn_implementation": "flash_attention_3"},
    "experts": {"experts_implementation": "sonicmoe"},
    "experts' kernel": {"_experts_implementation": HUB},
    "quantised": {"quantization_config": {"quant_method": "mxfp4"}},
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was to be reached."""
    reached: list[Any] = []

    def refuse(*address: Any, **options: Any) -> None:
        reached.append(address)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return reached


@pytest.mark.parametrize("model", ["generator", "retriever"])
def test_no_configuration_has_code_fetched(model: str, model_folder: MakeFolder, no_network: list[Any]) -> None:
    folder = model_folder("llama", "AutoModelForCausalLM")
    load = generator_of if model == "generator" else retriever_of
    before = (folder / "config.json").read_text()
    for keys in NAMES.values():
        (folder / "config.json").write_text(json.dumps(json.loads(before) | keys))
        with pytest.raises(UserError, match=f"--{model} .*: config.json names code that would be fetched") as error:
            load(folder)
        assert "--trust_remote_code" in str(error.value.fix)
    (folder / "config.json").write_text(json.dumps(json.loads(before) | NAMES["attn_implementation"]))
    with pytest.raises(ImportError, match="kernels"):  # the user's own word; here the package is missing
        load(folder, trust_remote_code=True)
    (folder / "config.json").write_text(json.dumps(json.loads(before) | {"attn_implementation": "eager"}))
    load(folder)
    assert not no_network


def test_nor_does_config_file(tmp_path: Path, no_network: list[Any]) -> None:
    for keys in NAMES.values():
        (tmp_path / "model.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300} | WIDE | keys))
        with pytest.raises(UserError, match="names code that would be fetched"):
            generator_of(f"config:{tmp_path}/model.json")


def test_an_adapters_base_is_a_folder_and_no_adapter(model_folder: MakeFolder, no_network: list[Any]) -> None:
    """transformers would look for the base's base on the hub."""
    base = model_folder("llama", "AutoModelForCausalLM")
    open_generator(ModelConfig(generator=str(base), lora="generator"), list, base).save(base / "saved")
    edit(base / "saved" / ADAPTER_FILE, base_model_name_or_path="org/name")
    with pytest.raises(UserError, match="an adapter whose base is not there"):
        generator_of(base / "saved")
    edit(base / "saved" / ADAPTER_FILE, base_model_name_or_path=str(base))
    generator_of(base / "saved")
    keys = {"peft_type": "LORA", "base_model_name_or_path": "org/name", "target_modules": ["q_proj"]}
    (base / ADAPTER_FILE).write_text(json.dumps(keys))
    with pytest.raises(UserError, match="an adapter whose base is itself an adapter"):
        generator_of(base / "saved")
    edit(base / "config.json", attn_implementation=HUB)
    (base / ADAPTER_FILE).unlink()
    with pytest.raises(UserError, match="names code that would be fetched"):
        generator_of(base / "saved")
    assert not no_network


@pytest.mark.parametrize("trusted", [False, True])
def test_the_hub_is_out_of_reach_while_a_folder_is_opened(
    trusted: bool, model_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever key would have something fetched, of those that are not known here."""
    from huggingface_hub import is_offline_mode

    seen: list[bool] = []
    begin = torch.nn.Embedding.__init__

    def watch(self: Any, *args: Any, **options: Any) -> None:
        seen.append(is_offline_mode())
        begin(self, *args, **options)

    folder = model_folder("llama", "AutoModelForCausalLM")
    before = is_offline_mode()
    monkeypatch.setattr(torch.nn.Embedding, "__init__", watch)
    generator_of(folder, trust_remote_code=trusted)
    assert seen[-1] == (before or not trusted) and is_offline_mode() == before


def test_ids_beyond_the_embeddings(model_folder: MakeFolder, tokenizer: Any) -> None:
    """A padding token is one that every batch brings; a further added token is an error only where a text has it."""
    folder = model_folder("llama", "AutoModelForCausalLM")  # 512 embeddings
    tokenizer.add_tokens([f"<more{n}>" for n in range(513 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    retriever, generator = retriever_of(folder), generator_of(folder)
    with pytest.raises(UserError, match="a query with a token that the model has no embedding for") as error:
        retriever.tokenize(["a <more0> <more1>" + tokenizer.convert_ids_to_tokens(512)], "query")
    assert "(512); 512 embeddings" in str(error.value.found)
    ids = torch.tensor([5, 512]).int().numpy()
    with pytest.raises(UserError, match="a prompt or an answer with a token"):
        generator.lay_out(list_cells([ids], [ids], [1]), 0)
    tokenizer.add_special_tokens({"pad_token": tokenizer.convert_ids_to_tokens(512)})
    tokenizer.save_pretrained(folder)
    for load in (retriever_of, generator_of):
        with pytest.raises(UserError, match="tokens that the model has no embedding for") as error:
            load(folder)
        assert "pad_token 512" in str(error.value.found)
    edit(folder / "config.json", pad_token_id=512)
    with pytest.raises(UserError, match="a padding token that the model has no embedding for"):
        generator_of(folder)


def test_a_tokenizer_of_another_model(any_folder: MakeFolder) -> None:
    for load in (retriever_of, generator_of):
        with pytest.raises(UserError, match="tokens that the model has no embedding for") as error:
            load(any_folder("llama", "AutoModelForCausalLM", **WIDE | {"vocab_size": 300}))
        assert "the vocabulary 511; 300 embeddings" in str(error.value.found)


@pytest.mark.parametrize("kind", sorted(AFTER_PADDING - {"xmod"}))  # which wants a language
def test_positions_that_begin_after_the_padding_token(kind: str) -> None:
    more = {"attention_window": [4]} if kind == "longformer" else {}
    more |= {"entity_vocab_size": 8, "entity_emb_size": 8} if kind == "luke" else {}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.AutoConfig.for_model(kind, vocab_size=99, max_position_embeddings=32, **shape, **more)
    model, most = transformers.AutoModel.from_config(config).eval(), usable_positions(config)
    assert most is not None
    for length, fits in ((most, True), (most + 1, False)):
        ids = torch.full((1, length), 50)
        with torch.no_grad():
            try:
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
                assert fits
            except (IndexError, RuntimeError):
                assert not fits


def test_a_robertas_texts_are_cut_where_its_positions_end(any_folder: MakeFolder) -> None:
    folder = any_folder("roberta", "AutoModel", **WIDE, max_position_embeddings=64)
    data = DataConfig(max_query_length=500, max_passage_length=500)
    retriever = open_retriever(ModelConfig(retriever=str(folder)), data, list, folder).eval()
    assert retriever.settings.max_passage_length == 63  # padding is token 0
    ids = retriever.tokenize(["the tavern of zor " * 60], "passage")
    assert len(ids[0]) == 63
    with torch.no_grad():
        retriever.embed(pad_right([torch.tensor(ids[0]).numpy()], 0), "passage")


ABSURD: list[dict[str, Any]] = [
    {"hidden_size": 10**9, "num_attention_heads": 10**3},
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 10**12},
    {"intermediate_size": 10**12},
    {"num_attention_heads": 10**9, "head_dim": 10**3},
    {"max_position_embeddings": 10**12},
    {"num_labels": 10**10},
]


@pytest.mark.parametrize("keys", ABSURD, ids=str)
@pytest.mark.parametrize("place", ["folder", "config:FILE"])
def test_absurd_sizes_are_counted_and_not_built(
    keys: Any, place: str, model_folder: MakeFolder, tmp_path: Path
) -> None:
    kind = "gpt2" if "max_position_embeddings" in keys else "llama"
    if kind == "gpt2":
        keys = {"n_positions": keys["max_position_embeddings"]}
    if place == "folder":
        source: Any = model_folder(kind, "AutoModelForCausalLM")
        edit(source / "config.json", **keys)
    else:
        wide = WIDE if kind == "llama" else {"n_embd": 32, "n_layer": 2, "n_head": 4}
        (tmp_path / "model.json").write_text(json.dumps({"model_type": kind, "vocab_size": 300} | wide | keys))
        source = f"config:{tmp_path}/model.json"
    with pytest.raises(UserError, match=r"larger than (this machine|the weights beside it)"):
        generator_of(source)


@pytest.mark.parametrize("keys", ABSURD[:5], ids=str)
def test_plan_answers_of_absurd_sizes(keys: Any, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300} | WIDE | keys))
    try:
        cli.run("plan", ["--retriever", "bge-base", "--generator", f"config:{tmp_path}/model.json"])
    except UserError as error:
        assert "nothing fits on" in str(error)


DEEP = "[" * 100_000
ODD = [("config.json", {"architectures": 3}), ("config.json", {"pad_token_id": "0"}), ("config.json", DEEP)]
ODD += [("config.json", {"sub": json.loads("[" * 800 + "]" * 800)}), ("tokenizer_config.json", DEEP)]
ODD += [("tokenizer_config.json", {"model_max_length": value}) for value in ([], "long", -1, 0)]


@pytest.mark.parametrize("role", ["generator", "retriever"])
@pytest.mark.parametrize(("file", "values"), ODD, ids=[f"{file} {str(values)[:30]}" for file, values in ODD])
def test_values_of_another_type(any_folder: MakeFolder, role: str, file: str, values: Any) -> None:
    """They are refused, or nothing reads them."""
    generates = role == "generator"
    folder = any_folder("llama", "AutoModelForCausalLM" if generates else "AutoModel", **WIDE)
    known = json.loads((folder / file).read_text())
    (folder / file).write_text(values if isinstance(values, str) else json.dumps(known | values))
    try:
        (generator_of if generates else retriever_of)(folder)
    except UserError as error:
        assert str(folder) in error.message
