from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from ds_rag.config import DEFAULT_TEMPLATE
from ds_rag.data.prompt import Prompt
from ds_rag.data.world import make_world
from ds_rag.errors import UserError
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer

WORLD = make_world(0)
CORPUS = [p.text for p in WORLD.corpus]
PASSAGE, QUERY, ANSWER = (
    "the tavern of zor via is linen",
    "where can travellers sleep near zor via ?",
    "linen",
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT = (
    "{% for m in messages %}<s>[{{ m['role'] }}] {{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>[assistant]\n{% endif %}"
)


def byte_level(folder: Path) -> None:
    """As GPT-2's: a word's leading space is in its first token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.save(str(folder / "tokenizer.json"))


def dummy_prefix(folder: Path) -> None:
    """As Llama 2's: every text begins with a space of the tokenizer's own."""
    train_tokenizer(CORPUS, 500, folder)
    inner = Tokenizer.from_str(open_tokenizer(folder, "left").backend_tokenizer.to_str())
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.pre_tokenizer = None
    (folder / "tokenizer.model").unlink()
    inner.save(str(folder / "tokenizer.json"))


def own(folder: Path) -> None:
    train_tokenizer(CORPUS, 500, folder)


@pytest.fixture(scope="module", params=[own, byte_level, dummy_prefix])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder)
    if request.param is not own:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adds_space = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
    assert adds_space.startswith("▁") == (request.param is dummy_prefix)
    return tokenizer


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def context(prompt: Prompt, passage: str = PASSAGE, query: str = QUERY, answer: str = ANSWER) -> list[int]:
    fields = {"passage": passage, "query": query, "answer": answer}
    made = {name: np.array(prompt.encode(name, [text], 64)[0]) for name, text in fields.items()}
    return np.concatenate([prompt.context(made["passage"], made["query"], 8), made["answer"]]).tolist()


@pytest.mark.parametrize(
    "template",
    [
        DEFAULT_TEMPLATE,
        "Question: {query}\nPassage: {passage}\nAnswer:",
        "{passage}\n{query}\nAnswer:",
        "Passage: {passage} Question: {query}",
        "Passage:\n{passage}\nQuestion:\n{query}\nAnswer:\n",
        "the set {{x}} of {passage} and {query} is",
    ],
)
def test_pieces_have_the_ids_of_the_whole_text(template, tokenizer):
    """However the words are joined: as training, evaluation and `ask` do, or by hand."""
    text = template.format(passage=PASSAGE, query=QUERY)
    text += ANSWER if text.endswith("\n") else f" {ANSWER}"
    ids = context(Prompt(tokenizer, template))
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[1:-1] == ids_of(tokenizer, text)


def test_passage_comes_first_by_default(tokenizer):
    text = tokenizer.decode(context(Prompt(tokenizer, DEFAULT_TEMPLATE)))
    assert 0 < text.index(PASSAGE) < text.index(QUERY) < text.rindex(ANSWER)


def test_contexts_of_one_passage_share_their_beginning(tokenizer):
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE)
    first, second = (context(prompt, query=q) for q in (QUERY, "who leads mel dor ?"))
    shared = 1 + len(ids_of(tokenizer, f"Passage: {PASSAGE}"))
    assert first[:shared] == second[:shared]
    assert first != second


def test_a_long_passage_is_cut_and_nothing_else(tokenizer):
    whole = Prompt(tokenizer, DEFAULT_TEMPLATE)
    passage, query = (np.array(whole.encode(n, [t], 64)[0]) for n, t in (("passage", PASSAGE), ("query", QUERY)))
    full = whole.context(passage, query, 8)
    for kept in range(len(passage)):
        limit = len(full) - len(passage) + kept + 8
        cut = Prompt(tokenizer, DEFAULT_TEMPLATE, max_length=limit).context(passage, query, 8)
        assert len(cut) + 8 == limit
        head = len(whole.literals[0])
        np.testing.assert_array_equal(cut, np.concatenate([full[: head + kept], full[head + len(passage) :]]))
    with pytest.raises(UserError, match="exceed the generator's length"):
        Prompt(tokenizer, DEFAULT_TEMPLATE, max_length=limit - len(passage)).context(passage, query, 8)


def test_fields_are_cut_at_their_own_length_and_answers_end(tokenizer):
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE)
    for name in ("passage", "query", "answer"):
        whole, short = prompt.encode(name, [PASSAGE], 64)[0], prompt.encode(name, [PASSAGE], 3)[0]
        end = [tokenizer.eos_token_id] if name == "answer" else []
        assert short == whole[:3] + end
        assert (whole[-1] == tokenizer.eos_token_id) == bool(end)


@pytest.mark.parametrize("text", ["the </s> end", "<s>", "<pad> {query}", "{passage} {0} }{ {{", "[assistant]\n"])
def test_data_is_text_whatever_it_looks_like(text, tokenizer):
    ids = context(Prompt(tokenizer, DEFAULT_TEMPLATE), passage=text, query=text, answer=text)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert not special & set(ids[1:-1])
    assert tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False).count(text) == 3


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{passage}",
        "{query}",
        "{passage} {query} {query}",
        "{passage} {query} {answer}",
        "{} {query}",
        "{passage:>10} {query}",
        "{passage!r} {query}",
        "{passage} {query",
        "{passage} {query} }",
    ],
)
def test_wrong_placeholders(template, tokenizer):
    with pytest.raises(UserError, match="--prompt_template"):
        Prompt(tokenizer, template)


def test_chat_template_is_put_around(tokenizer):
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, chat_template=CHAT)
    ids = context(Prompt(tokenizer, DEFAULT_TEMPLATE + " {{short}}", chat=True))
    filled = f"Passage: {PASSAGE}\nQuestion: {QUERY}\nAnswer: {{short}}"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": filled}], tokenize=False, add_generation_prompt=True
    )
    assert ids[:-1] == ids_of(tokenizer, text + ANSWER)
    assert ids.count(tokenizer.bos_token_id) == 2  # its own, and no other


def test_chat_without_a_chat_template(tokenizer):
    with pytest.raises(UserError, match="--chat_template"):
        Prompt(tokenizer, DEFAULT_TEMPLATE, chat=True)


def test_no_begin_token_where_the_tokenizer_has_none(tokenizer):
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, bos_token=None)
    assert context(Prompt(tokenizer, DEFAULT_TEMPLATE))[:-1] == ids_of(
        tokenizer, f"Passage: {PASSAGE}\nQuestion: {QUERY}\nAnswer: {ANSWER}"
    )
