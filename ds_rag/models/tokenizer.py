"""Tokenizers: training one with sentencepiece on a corpus, opening one, and checking its ids against a model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ds_rag.models.architecture import check_folder
from ds_rag.models.folder_safety import COPY_AGAIN, opening, out_of_reach
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_readable


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Trains a sentencepiece BPE model on `texts` and writes a folder that AutoTokenizer opens.

    At most `vocab_size` pieces (a small corpus may yield fewer), byte fallback for unseen characters, ids
    <pad> 0, <s> 1, </s> 2, <unk> 3. Without normalisation and dummy prefix: otherwise the ids of transformers differ
    from those of sentencepiece for some texts, such as those with leading or double spaces.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            character_coverage=1.0,
            max_sentence_length=1 << 20,
            input_sentence_size=1_000_000,
            shuffle_input_sentence=True,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            "the tokenizer could not be trained on the corpus",
            found=str(error).splitlines()[0],
            expected="a vocab_size of at least 300 and the number of distinct characters",
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def open_tokenizer(folder: str | Path, padding_side: str, trust_remote_code: bool = False) -> Any:
    """The folder's tokenizer; one without a pad token pads with its end-of-sequence token.

    That is safe because masks here are made by position, never by token id. We pad ourselves, not by the tokenizer:
    `padding_side` is for those who open the saved folder.
    """
    from transformers import AutoTokenizer

    check_readable(Path(folder), "tokenizer")
    check_folder(Path(folder), f"tokenizer of {folder}", trust_remote_code)  # transformers reads config.json too
    with opening(f"tokenizer of {folder}"), out_of_reach(trust_remote_code):
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), padding_side=padding_side, trust_remote_code=trust_remote_code
        )  # padding_side must be set here to be saved
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made from the settings alone, it is empty
        raise UserError(
            f"{folder}: a tokenizer that knows no token but the special ones",
            found=f"{len(tokenizer)} tokens",
            expected="its vocabulary, such as tokenizer.json or tokenizer.model",
            fix=COPY_AGAIN,
        )
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1:
        raise UserError(
            f"{folder}: tokenizer_config.json: model_max_length is no length",
            found=repr(longest),
            expected="a number of tokens from 1 on, or none",
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{folder}: the tokenizer has neither a pad nor an end-of-sequence token",
                expected="an eos_token, which then pads too",
                fix='name one of its tokens in its tokenizer_config.json: "eos_token": "..."',
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_ids(tokenizer: Any, rows: int, what: str) -> None:
    """Raises UserError where a token that any text may contain has none of the model's `rows` embeddings: tokens of the
    vocabulary, padding, and tokens that the tokenizer adds itself. Another added token (Gemma 3 has one for images) is
    an error only if a text contains it (`check_known`)."""
    added = {n: str(token) for n, token in tokenizer.added_tokens_decoder.items()}
    own = {name: getattr(tokenizer, f"{name}_id") for name in ("pad_token", "eos_token", "unk_token")}
    with opening(what):  # settings may have any type, and are used here first
        own |= {"a special token of every text": max(tokenizer("a")["input_ids"], default=None)}
    own |= {"the vocabulary": max((n for n in tokenizer.get_vocab().values() if n not in added), default=None)}
    beyond = [f"{name} {n} {added.get(n, '')}".strip() for name, n in own.items() if n is not None and n >= rows]
    if beyond:
        raise UserError(
            f"{what}: the tokenizer has tokens that the model has no embedding for",
            found=f"{', '.join(beyond)}; {rows} embeddings",
            expected=f"ids below {rows}",
            fix="the model's own tokenizer; or, where only pad_token is beyond, "
            '"pad_token": its end-of-sequence token, in tokenizer_config.json',
        )


def check_token_ids(tokenizer: Any, largest: int, rows: int, what: str) -> None:
    """Raises UserError where the model has no embedding for `largest`, the largest id in some texts."""
    if largest >= rows:
        raise UserError(
            f"{what} with a token that the model has no embedding for",
            found=f"{tokenizer.convert_ids_to_tokens(largest)} ({largest}); {rows} embeddings",
            expected=f"ids below {rows}",
            fix="take it out of the texts",
        )


def lower_cased(tokenizer: Any, what: str) -> Any:
    """The tokenizer, lower-casing texts before its own rules, like do_lower_case of sentence-transformers: special
    tokens in texts are not changed. Raises UserError for a tokenizer that cannot do this."""
    from tokenizers.normalizers import Lowercase, Sequence

    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise UserError(
            f"{what}: do_lower_case with a tokenizer that has no rules to put it before",
            found=type(tokenizer).__name__,
            expected="one of the tokenizers library, or texts and folder without do_lower_case",
        )
    own: Any = inner.normalizer
    several = isinstance(inner.normalizer, Sequence)
    rules = list(own) if several else [own] * (own is not None)
    if not any(isinstance(rule, Lowercase) for rule in rules):
        inner.normalizer = Sequence([Lowercase(), *rules])
    return tokenizer
