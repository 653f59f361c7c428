"""What a resumed run may change: every field of the configuration is tried, and every part of the data.

In-process, against a manifest; tests/faults has the whole command.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from ds_rag.config import FIXED, FREE, INDEX, LENGTH, ON_RESUME, OWNER, SECTIONS, RunConfig
from ds_rag.config.options import option
from ds_rag.data.dataset import Example, TokenTable
from ds_rag.data.loader import TrainTokens
from ds_rag.run.resume_rules import check_unchanged, data_hash
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.errors import UserError

# Nothing of these changes what is learned, or it is checked otherwise (data, weights, rows a step), or said (lengths).
MAY_CHANGE = """title_column place_column cluster_column hybrid rerank lexical_lines teacher_cache vector_cache
    output_dir resume resume_changed save_steps save_total_limit report_to debug corpus train_data eval_data
    max_eval_samples deepspeed deepspeed_retriever deepspeed_generator memory_budget micro_cells retriever_chunk
    gradient_checkpointing per_device_train_batch_size gradient_accumulation_steps collective_timeout
    per_device_eval_batch_size index_shards top_k decode max_new_tokens eval_answers metric_for_best_model
    load_best_model_at_end early_stopping_patience max_bad_steps detect_collapse on_bad_row
    max_steps num_train_epochs
"""
OF_THE_INDEX = {"refresh_index", "refresh_mode", "refresh_staleness", "refresh_fraction", "index_factory"}


def other(name: str) -> Any:
    """Another value of the field, of its type."""
    section = SECTIONS[OWNER[name]]
    (field,) = (f for f in fields(section) if f.name == name)
    wanted = get_type_hints(section)[name]
    kind = next((a for a in get_args(wanted) if a is not type(None)), wanted)
    value = getattr(section(), name)
    if field.metadata["choices"]:
        return next(c for c in field.metadata["choices"] if c != value)
    if kind is bool:
        return not value
    return "another" if kind is str else kind((value or 0) + 1)


def now(values: dict[str, Any]) -> dict[str, Any]:
    facts = {"global_batch": 8, "per_device_batch": 8, "data": "d", "evaluation": "e", "unsaved": {}, "prompt": True}
    return facts | {"config": RunConfig().flat() | values}


@pytest.fixture
def refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`refuses(values, then, config)`: what is said against a run with these values, else an empty text."""

    def ask(values: dict[str, Any], then: dict[str, Any] | None = None, config: RunConfig | None = None) -> str:
        manifest = json.loads(json.dumps(then or now({})))
        monkeypatch.setattr(atomic_folders, "read_manifest", lambda folder: manifest)
        try:
            check_unchanged(tmp_path, config or RunConfig(), now(values), lambda text: None)
        except UserError as error:
            return str(error)
        return ""

    return ask


@pytest.mark.parametrize("name", OWNER)
def test_every_field_is_refused_by_name_or_listed(name: str, refuses: Any) -> None:
    said = refuses({name: other(name)})
    if name in MAY_CHANGE.split() or name in OF_THE_INDEX:
        assert said == ""
    else:
        assert f"--{name}: " in said and "restore them" in said


def test_every_field_says_what_a_resumed_run_may_do_with_it() -> None:
    """None can be declared without one of the four words; which may change is the same list as in earlier versions."""
    with pytest.raises(TypeError):
        option("a default", "and a help")  # type: ignore[call-arg]
    assert ON_RESUME.keys() == OWNER.keys() and set(ON_RESUME.values()) == {FIXED, FREE, INDEX, LENGTH}
    by_rule = {rule: {name for name in OWNER if ON_RESUME[name] == rule} for rule in (FREE, INDEX, LENGTH)}
    assert by_rule[FREE] | by_rule[LENGTH] == set(MAY_CHANGE.split()) and by_rule[INDEX] == OF_THE_INDEX
    assert by_rule[LENGTH] == {"max_steps", "num_train_epochs"}


@pytest.mark.parametrize("name", sorted(OF_THE_INDEX))
def test_what_an_index_is_counts_where_rows_take_their_passages_from_it(name: str, refuses: Any) -> None:
    config = RunConfig()
    config.objective.candidates_from = "index"
    assert f"--{name}: " in refuses({name: other(name)}, config=config)


def test_the_prompt_of_a_run_that_does_not_say_is_the_first_versions(refuses: Any) -> None:
    """It goes on with that, when asked to, or is refused by name; a run without a generator has no prompt."""
    then = now({})
    del then["config"]["prompt_version"]
    assert "--prompt_version: '1' then, '2' now" in refuses({}, then)
    assert refuses({"prompt_version": "1"}, then) == ""
    without = now({}) | {"prompt": False}
    assert without["config"]["prompt_version"] == "2"


TABLES = ("queries", "passages", "generator_queries", "generator_passages", "generator_answers")


def parts(**changed: Any) -> Any:
    tables = {name: np.arange(6, dtype=np.int32) + 10 * n for n, name in enumerate(TABLES)}
    row = {"positives": (0,), "others": (1, 2)} | {k: v for k, v in changed.items() if k not in TABLES}
    tables |= {k: v for k, v in changed.items() if k in TABLES}
    tokens = TrainTokens(**{k: None if v is None else TokenTable(v, np.array([2, 6])) for k, v in tables.items()})
    return SimpleNamespace(loader=SimpleNamespace(tokens=tokens, rows=[Example("q", ("a",), **row)]))


@pytest.mark.parametrize("name", TABLES)
def test_the_data_are_every_text_that_is_read(name: str) -> None:
    changed = np.arange(6, dtype=np.int32) + 10 * TABLES.index(name)
    changed[-1] += 1
    hashes = {data_hash(parts()), data_hash(parts(**{name: changed}))}
    if name.startswith("generator"):
        hashes.add(data_hash(parts(**{name: None})))
        assert len(hashes) == 3
    assert len(hashes) >= 2 and data_hash(parts()) == data_hash(parts())


@pytest.mark.parametrize("changed", [{"positives": (1,), "others": (0, 2)}, {"others": (2, 1)}, {"others": (1,)}])
def test_the_data_are_the_rows_labels_and_candidates_too(changed: dict[str, Any]) -> None:
    assert data_hash(parts(**changed)) != data_hash(parts())
