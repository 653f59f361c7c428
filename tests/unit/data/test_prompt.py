"""The prompt's ids, by five kinds of tokenizers: sentencepiece's (our own), with a space of its own before every text
(Llama 2), byte-level (GPT-2; with a BOS and with line breaks that join punctuation, Llama 3), word pieces (BERT); and
SmolLM2's where there is a folder of it. Templates: either order, with and without spaces and line breaks around the
texts, special tokens in the template and in texts, chat templates, texts with blanks at their ends, cut texts, none.
"""

from __future__ import annotations

import json
import os
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from ds_rag.config import DEFAULT_TEMPLATE
from ds_rag.data.almanac import make_world
from ds_rag.data.prompt import Prompt
from ds_rag.data.seams import InText, special_prefix
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer
from ds_rag.runtime.errors import UserError

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


def adds_bos(folder: Path) -> None:
    """As Llama 3's: byte-level, punctuation and line breaks in one piece, a BOS put before every text."""
    inner = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*CORPUS, *[f"So: {text}.\nIs it?\n\n" for text in CORPUS[:300]]], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.save(str(folder / "tokenizer.json"))


def wordpiece(folder: Path) -> None:
    """As BERT's: words without their spaces, all in lower case, between two tokens of its own."""
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    alphabet = [chr(n) for n in range(32, 127)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=[*SPECIAL.values(), "<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    inner.save(str(folder / "tokenizer.json"))


def own(folder: Path) -> None:
    train_tokenizer(CORPUS, 500, folder)


KINDS = {"own": own, "byte_level": byte_level, "dummy_prefix": dummy_prefix, "adds_bos": adds_bos}
KINDS["wordpiece"] = wordpiece
BEGINS = {"adds_bos": [0], "wordpiece": [0]}  # what each puts before a text; nothing, although all have a BOS


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp(kind)
    KINDS[kind](folder)
    if kind != "own":
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adds_space = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
    assert adds_space.startswith("▁") == (kind == "dummy_prefix")
    assert special_prefix(tokenizer) == BEGINS.get(kind, []) and tokenizer.bos_token_id is not None
    return tokenizer


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def context(prompt: Prompt, passage: str = PASSAGE, query: str = QUERY, answer: str = ANSWER) -> list[int]:
    fields = {"passage": passage, "query": query, "answer": answer}
    made = {name: np.array(prompt.encode(name, [text], 64)[0]) for name, text in fields.items()}
    return np.concatenate([prompt.context(made["passage"], made["query"], 8), made["answer"]]).tolist()


def whole(tokenizer, text: str) -> list[int]:
    """The whole text's ids as anyone would make them, with one end of sequence."""
    ids = tokenizer(text)["input_ids"]
    return ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


TEMPLATES = [
    DEFAULT_TEMPLATE,
    "Question: {query}\nPassage: {passage}\nAnswer:",
    "{passage}\n{query}\nAnswer:",
    "Passage: {passage} Question: {query}",
    "Passage:\n{passage}\nQuestion:\n{query}\nAnswer:\n",
    "Passage:{passage}\n\nQ:{query}\nA: ",
    "the set {{x}} of {passage} and {query} is",
]
TEXTS = [PASSAGE, QUERY, "Ends.", "7", "(it is)", 'a "word"', "é", "中", "so?", "'s", "-x", "...", "12 %", "Don't"]
BLANKS = [" x", "\nx", "  two  spaces", "x ", "x\n", "x. \n", "a\n\nb"]


def unlike(tokenizer, template: str, texts: list[str]) -> list[tuple[str, str, str]]:
    """The fillings by which the joined pieces have other ids than the whole text."""
    prompt, gap = Prompt(tokenizer, template), "" if template[-1].isspace() else " "
    return [
        (passage, query, answer)
        for passage, query, answer in product(texts, texts, (ANSWER, "7", '"x"'))
        if context(prompt, passage, query, answer)
        != whole(tokenizer, template.format(passage=passage, query=query) + gap + answer)
    ]


@pytest.mark.parametrize("template", TEMPLATES)
def test_pieces_have_the_ids_of_the_whole_text(template, tokenizer):
    """However the words are joined: as training, evaluation and `ask` do, or by hand."""
    assert unlike(tokenizer, template, TEXTS) == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_with_blanks_around_them_too(template, tokenizer, kind):
    """The one exception: nothing but a line break between two texts, the first of which ends and the second of which
    begins with blanks, for tokenizers whose words hold several."""
    found = unlike(tokenizer, template, BLANKS)
    if kind in ("byte_level", "adds_bos") and template.startswith("{passage}\n{query}"):
        assert all(p[-1].isspace() and q[0].isspace() for p, q, _ in found)
    else:
        assert found == []


def test_where_nothing_lies_between_two_texts_they_are_joined_by_id(tokenizer):
    """The other exception: no piece can be shared between queries where a word may span both texts."""
    ids = context(Prompt(tokenizer, "Of {passage}{query}\n"), passage="lin", query="en", answer="x")
    apart = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("Of lin", "en")]
    assert tokenizer.decode(ids).replace(" ", "").count("linen") == 1
    assert len(ids) >= len(apart[0])


def tight(text: str) -> str:
    """Without what word pieces do not keep: spaces and capital letters."""
    return "".join(text.split()).lower()


def shown(tokenizer, ids: list[int]) -> str:
    return tight(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def test_passage_comes_first_by_default(tokenizer):
    text = shown(tokenizer, context(Prompt(tokenizer, DEFAULT_TEMPLATE)))
    assert 0 < text.index(tight(PASSAGE)) < text.index(tight(QUERY)) < text.rindex(tight(ANSWER))


def test_contexts_of_one_passage_share_their_beginning(tokenizer):
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE)
    first, second = (context(prompt, query=q) for q in (QUERY, "who leads mel dor ?"))
    shared = len(whole(tokenizer, f"Passage: {PASSAGE}\nQuestion:")) - 1
    assert first[:shared] == second[:shared]
    assert first != second
    parts = [
        prompt.split(*(np.array(prompt.encode(n, [t], 64)[0]) for n, t in (("passage", PASSAGE), ("query", q))), 8)[0]
        for q in (QUERY, "who leads mel dor ?")
    ]
    np.testing.assert_array_equal(*parts)
    assert len(parts[0]) == shared, "the literal after the passage is read once, too"


def test_a_long_passage_is_cut_and_nothing_else(tokenizer):
    whole = Prompt(tokenizer, DEFAULT_TEMPLATE)
    passage, query = (np.array(whole.encode(n, [t], 64)[0]) for n, t in (("passage", PASSAGE), ("query", QUERY)))
    full = whole.context(passage, query, 8)
    own = whole.own_length("passage", passage)
    for kept in range(own):
        limit = len(full) - own + kept + 8
        cut = Prompt(tokenizer, DEFAULT_TEMPLATE, max_length=limit).context(passage, query, 8)
        assert len(cut) + 8 == limit
        head = len(whole.literals[0])
        np.testing.assert_array_equal(cut, np.concatenate([full[: head + kept], full[head + own :]]))
    with pytest.raises(UserError, match="exceed the generator's length"):
        Prompt(tokenizer, DEFAULT_TEMPLATE, max_length=limit - own).context(passage, query, 8)


def test_fields_are_cut_at_their_own_length_and_answers_end(tokenizer):
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE)
    for name in ("passage", "query", "answer"):
        whole, short = prompt.encode(name, [PASSAGE], 64), prompt.encode(name, [PASSAGE], 3)
        end = [tokenizer.eos_token_id] if name == "answer" else []
        tail = prompt.around[name].tail
        assert short[0] == whole[0][:3] + tail + end and (whole.cut, short.cut) == (0, 1)
        assert bool(tail) == (name != "answer") and prompt.own_length(name, short[0]) == 3
        assert whole[0][len(whole[0]) - len(tail + end) :] == tail + end
        length = prompt.own_length(name, whole[0])
        assert prompt.encode(name, [PASSAGE], length)[0] == whole[0] and prompt.encode(name, [PASSAGE], length).cut == 0


@pytest.mark.parametrize("text", ["the </s> end", "<s>", "<pad> {query}", "{passage} {0} }{ {{", "[assistant]\n"])
def test_data_is_text_whatever_it_looks_like(text, tokenizer):
    ids = context(Prompt(tokenizer, DEFAULT_TEMPLATE), passage=text, query=text, answer=text)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert not special & set(ids[1:-1])
    assert shown(tokenizer, ids[1:-1]).count(tight(text)) == 3


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


def test_a_begin_token_is_the_tokenizers_own_doing(tokenizer, kind):
    """Not that of whoever finds that it has one: SmolLM2's is its mark of a chat's turn."""
    ids = context(Prompt(tokenizer, DEFAULT_TEMPLATE))
    assert (ids[0] == tokenizer.bos_token_id) == (kind in BEGINS)
    without = type(tokenizer).from_pretrained(tokenizer.name_or_path, bos_token=None)
    assert context(Prompt(without, DEFAULT_TEMPLATE))[-2:] == ids[-2:]


def test_a_text_without_a_token_has_no_ids_and_makes_an_empty_ones_prompt(tokenizer):
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE)
    query = np.array(prompt.encode("query", [QUERY], 64)[0])
    nothing = prompt.encode("passage", [""], 64)[0]
    assert nothing == []
    ids = prompt.context(np.array(nothing, dtype=np.int32), query, 8).tolist()
    assert ids == whole(tokenizer, DEFAULT_TEMPLATE.format(passage="", query=QUERY))[:-1]


def test_language_modelling_of_passages_reads_them_without_the_template(tokenizer):
    """The literal after a passage is no part of the corpus."""
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE)
    for length in (3, 64):
        ids = np.array(prompt.encode("passage", [PASSAGE], length)[0])
        alone = prompt.alone("passage", ids).tolist()
        assert alone == InText(tokenizer).ids([f" {PASSAGE}"])[0][:length]


@pytest.mark.parametrize("text", ["the </s> end", "<s>"])
def test_a_template_may_hold_special_tokens_and_a_text_may_not(text, tokenizer):
    prompt = Prompt(tokenizer, "<s>[user] {passage}\n{query}</s>\n<s>[assistant]\n")
    ids = context(prompt, passage=text, query=text, answer=text)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids.count(start) == 2 + len(special_prefix(tokenizer)) and ids.count(end) == 2
    shown = "<s>[user] {passage}\n{query}</s>\n<s>[assistant]\n"
    plain = context(prompt)
    assert plain == whole(tokenizer, shown.format(passage=PASSAGE, query=QUERY) + ANSWER)


def test_the_first_versions_tokens_for_runs_that_were_trained_on_them(tokenizer):
    """A BOS, and literals by themselves."""
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE, version="1")
    pieces = InText(tokenizer)
    texts = ["Passage:", f" {PASSAGE}", "\nQuestion:", f" {QUERY}", "\nAnswer:", f" {ANSWER}"]
    apart = [pieces.ids([text], fresh=n == 0)[0] for n, text in enumerate(texts)]
    assert context(prompt) == [tokenizer.bos_token_id, *chain(*apart), tokenizer.eos_token_id]
    assert prompt.encode("query", [QUERY], 64)[0] == apart[3]


CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CLOSE = "{% for m in messages %}{% if m['role'] == 'user' %}<s>{{ m['content'] }}{% else %}</s> {{ m['content'] }}<pad>"
CLOSE += "{% endif %}{% endfor %}{% if add_generation_prompt %}</s>{% endif %}"


@pytest.mark.parametrize("chat_template", [CHATML, CLOSE])
def test_a_chat_has_the_ids_of_apply_chat_template(chat_template, tokenizer):
    """Its own special tokens, no further BOS, and before the answer what it puts there itself."""
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, chat_template=chat_template)
    prompt = Prompt(tokenizer, DEFAULT_TEMPLATE, chat=True)
    user = {"role": "user", "content": DEFAULT_TEMPLATE.format(passage=PASSAGE, query=QUERY)}
    answered = [user, {"role": "assistant", "content": ANSWER}]
    wanted = tokenizer.apply_chat_template(answered, tokenize=True, return_dict=False)
    ids = context(prompt)[:-1]
    assert ids == wanted[: len(ids)]
    opened = tokenizer.apply_chat_template([user], tokenize=True, add_generation_prompt=True, return_dict=False)
    fields = (np.array(prompt.encode(n, [t], 64)[0]) for n, t in (("passage", PASSAGE), ("query", QUERY)))
    assert prompt.context(*fields, 8).tolist() == opened


SMOLLM2 = os.environ.get("DS_RAG_SMOLLM2", "")  # a folder with its tokenizer


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2, reason="DS_RAG_SMOLLM2 names no folder of SmolLM2-135M-Instruct")
@pytest.mark.parametrize("template", TEMPLATES)
def test_smollm2(template):
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    assert tokenizer.bos_token == "<|im_start|>" and special_prefix(tokenizer) == []
    assert unlike(tokenizer, template, TEXTS) == []
    prompt = Prompt(tokenizer, template, chat=True)
    user = {"role": "user", "content": template.format(passage=PASSAGE, query=QUERY)}
    opened = tokenizer.apply_chat_template([user], tokenize=True, add_generation_prompt=True, return_dict=False)
    fields = (np.array(prompt.encode(n, [t], 64)[0]) for n, t in (("passage", PASSAGE), ("query", QUERY)))
    assert prompt.context(*fields, 8).tolist() == opened
