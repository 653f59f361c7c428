from __future__ import annotations

import json

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer
from ds_rag.runtime.errors import UserError

HOSTILE = [
    "",
    " ",
    "a",
    "  two spaces  inside and around  ",
    "line\nbreak\n\nand\ttab\r\n",
    "Ünï códe 漢字 العربية",
    "emoji 😀👩‍👩‍👧 and a flag 🇩🇪",
    "ﬁ ligature ① ² …",
    "▁ the space's own mark ▁▁",
    "\u00a0no-break\u200bzero-width\u3000wide",
    "12.5% of {x} [1] <b> & 'quotes' \"\"",
    "e\u0301 against \u00e9",
]


@pytest.mark.parametrize("saved_again", [False, True])
def test_ids_equal_sentencepiece_own(saved_again, tokenizer_folder, tmp_path, texts):
    own = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "tokenizer.model"))
    tokenizer = open_tokenizer(tokenizer_folder, "right")
    if saved_again:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = open_tokenizer(tmp_path, "right")
    probes = [*texts[::16], *HOSTILE]
    assert tokenizer(probes, add_special_tokens=False)["input_ids"] == own.encode(probes)


def test_adds_no_tokens_of_its_own_and_decodes_what_it_encoded(tokenizer, texts):
    for text in [*texts[:5], "zor  via 漢 😀"]:
        ids = tokenizer(text)["input_ids"]
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_special_ids_and_size(tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert ids == [0, 1, 2, 3]
    assert 300 < len(tokenizer) <= 512


def test_learns_the_corpus(tokenizer, texts):
    """Frequent words are one token, so the texts are far shorter than their bytes."""
    lengths = [len(x) for x in tokenizer(texts[:100])["input_ids"]]
    assert sum(lengths) < sum(len(t) for t in texts[:100]) / 3


def test_a_vocabulary_too_small_is_a_user_error(tmp_path, texts):
    with pytest.raises(UserError, match="could not be trained"):
        train_tokenizer(texts, 100, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_texts_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match="could not be trained"):
        train_tokenizer([], 512, tmp_path)


def byte_level(folder, **special):
    """A folder with an untrained byte-level tokenizer that has only these special tokens."""
    vocab = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(list(special.values()))
    inner.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_without_pad_the_end_of_sequence_pads(tmp_path):
    tokenizer = open_tokenizer(byte_level(tmp_path, eos_token="<end>"), "right")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 256
    assert tokenizer(["ab", "a"], padding=True)["attention_mask"] == [[1, 1], [1, 0]]
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (again.pad_token, again.padding_side) == ("<end>", "right")


def test_a_pad_of_its_own_is_kept(tmp_path):
    tokenizer = open_tokenizer(byte_level(tmp_path, eos_token="<end>", pad_token="<pad>"), "right")
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_neither_pad_nor_end_of_sequence_is_an_error(tmp_path):
    with pytest.raises(UserError, match="neither a pad nor an end-of-sequence"):
        open_tokenizer(byte_level(tmp_path, unk_token="<unk>"), "right")
