from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from ds_rag.config import ALIASES, OF_OWN_ROWS, OWNER, SECTIONS, RunConfig, build, find_file
from ds_rag.config.flags import parse, read_recipe
from ds_rag.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
TRAIN = ["--train_data", "rows.csv"]


@pytest.fixture
def recipe(tmp_path):
    def write(text: str = "", **keys) -> list[str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text + (yaml.safe_dump(keys) if keys else ""))
        return ["--config", str(path)]

    return write


def test_every_key_has_one_owner_and_a_help_text():
    names = [f.name for cls in SECTIONS.values() for f in fields(cls)]
    assert len(names) == len(set(names)) == len(OWNER)
    assert not set(ALIASES) & set(names)
    assert all(f.metadata["help"] for cls in SECTIONS.values() for f in fields(cls))


def test_every_default_is_valid_and_survives_a_round_trip():
    flat = RunConfig().flat()
    assert set(flat) == set(OWNER)
    assert build(flat).flat() == flat
    text = [word for key, value in flat.items() if value is not None for word in (f"--{key}", str(value))]
    assert parse([*text, *TRAIN]).flat() == flat | {"train_data": "rows.csv"}


def test_defaults_then_recipe_then_flags(recipe):
    flags = recipe(train_data="a.csv", seed=3, learning_rate=1e-4, bf16=False)
    config = parse([*flags, "--seed", "5", "--objective=infonce"])
    assert (config.optim.seed, config.optim.learning_rate, config.optim.bf16) == (5, 1e-4, False)
    assert (config.data.train_data, config.objective.objective) == ("a.csv", "infonce")
    assert config.model.encoders == "shared"
    assert config.explicit == {"train_data", "seed", "learning_rate", "bf16", "objective"}


def test_aliases(recipe):
    flags = ["--batch_size", "4", "--resume_from_checkpoint", "auto", "--local_rank=0"]
    config = parse([*TRAIN, *flags])
    assert (config.optim.per_device_train_batch_size, config.run.resume) == (4, "auto")
    assert config.explicit == {"train_data", "per_device_train_batch_size", "resume"}
    assert parse([*TRAIN, "--local-rank", "1"]).flat() == parse(TRAIN).flat()
    assert parse([*recipe(train_data="x", batch_size=7)]).optim.per_device_train_batch_size == 7


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["--bf16"], True),
        (["--bf16", "true"], True),
        (["--bf16=1"], True),
        (["--bf16", "yes"], True),
        (["--bf16", "False"], False),
        (["--bf16=no"], False),
        (["--bf16", "none"], None),
    ],
)
def test_booleans_with_and_without_a_value(words, value):
    assert parse([*TRAIN, *words, "--seed", "2"]).optim.bf16 is value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learning_rate", "2e-4", 2e-4),
        ("max_steps", "-1", -1),
        ("eval_data", "none", None),
        ("max_train_samples", "12", 12),
        ("query_prefix", "", ""),
        ("prompt_template", "a%s {passage} {query}", "a%s {passage} {query}"),
        ("normalize", "false", "false"),
        ("candidates", "all", "all"),
    ],
)
def test_values_of_flags(key, text, value):
    assert parse([*TRAIN, f"--{key}", text]).flat()[key] == value


def test_values_of_a_recipe(recipe):
    text = "train_data: x\nlearning_rate: 2e-4\ncandidates: 4\nrefresh_index: 25\nnormalize: true\neval_data:\n"
    config = parse(recipe(text))
    assert (config.optim.learning_rate, config.objective.candidates) == (2e-4, "4")
    assert (config.evaluation.refresh_index, config.model.normalize, config.data.eval_data) == ("25", "true", None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "x"),
        ("seed", 1.5),
        ("seed", True),
        ("learning_rate", "fast"),
        ("learning_rate", "nan"),
        ("learning_rate", True),
        ("bf16", "maybe"),
        ("bf16", 2),
        ("train_data", ["a", "b"]),
        ("seed", None),
        ("output_dir", {"a": 1}),
        ("max_steps", "1e3"),
    ],
)
def test_wrong_types_name_the_key(key, value, recipe):
    with pytest.raises(UserError, match=key):
        parse(recipe(**{"train_data": "x", key: value}))
    if isinstance(value, str):
        with pytest.raises(UserError, match=f"--{key}: wrong type"):
            parse([*TRAIN, f"--{key}", value])


def test_wrong_choice_lists_the_choices_and_the_nearest(recipe):
    for argv in ([*TRAIN, "--freeze", "retriver"], recipe(train_data="x", freeze="retriver")):
        with pytest.raises(UserError, match="freeze: unknown value") as error:
            parse(argv)
        assert error.value.expected == "none | retriever | generator"
        assert "retriever" in error.value.fix


@pytest.mark.parametrize(
    ("word", "close"),
    [
        ("--learning_rte", "--learning_rate"),
        ("--learning-rate", "--learning_rate"),
        ("--batchsize=4", "--batch_size"),
        ("--confg", "--config"),
        ("--resume_from_chekpoint", "--resume_from_checkpoint"),
    ],
)
def test_a_misspelt_flag_names_the_nearest(word, close):
    with pytest.raises(UserError, match="unknown flag") as error:
        parse([*TRAIN, word, "1"])
    assert error.value.fix == f"did you mean {close}?"


def test_flags_are_not_abbreviated_and_words_not_swallowed():
    with pytest.raises(UserError, match="unknown flag: --learning"):
        parse([*TRAIN, "--learning", "1"])
    with pytest.raises(UserError, match="unknown flag: --zzzzzz") as error:
        parse([*TRAIN, "--zzzzzz"])
    assert "--help" in error.value.fix
    with pytest.raises(UserError, match="unexpected argument"):
        parse([*TRAIN, "stray"])
    with pytest.raises(UserError, match="--seed"):
        parse([*TRAIN, "--seed"])


def test_a_misspelt_recipe_key_names_the_nearest(recipe):
    with pytest.raises(UserError, match="temprature") as error:
        parse(recipe(train_data="x", temprature=1))
    assert error.value.fix == "did you mean temperature?"


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "just words"])
def test_a_recipe_that_is_none(text, recipe):
    with pytest.raises(UserError, match="--config"):
        parse(recipe(text))


def test_missing_recipe(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError, match="--config: no such file"):
            parse(["--config", str(path)])


def test_a_recipe_without_training_data_is_refused(recipe):
    flags = recipe(seed=1)
    with pytest.raises(UserError, match="no training data"):
        parse(flags)
    assert parse([*flags, *TRAIN]).optim.seed == 1
    assert parse([*flags, "--train_data", "builtin"]).is_builtin


QUICKSTART = yaml.safe_load((ROOT / "ds_configs" / "recipes" / "quickstart.yaml").read_text())


def test_without_data_the_builtin_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the recipe ships with the package
    config = parse([])
    assert config.is_builtin
    assert config.explicit == frozenset()
    flat = config.flat()
    assert {key: flat[key] for key in QUICKSTART} == {k: type(flat[k])(v) for k, v in QUICKSTART.items()}
    assert flat != RunConfig().flat()
    assert parse(["--max_steps", "7"]).flat() == flat | {"max_steps": 7}


def test_recipe_over_the_builtin_run_and_flags_over_both(recipe):
    config = parse([*recipe(train_data="builtin", max_steps=3, seed=4), "--seed", "5"])
    assert (config.optim.max_steps, config.optim.seed) == (3, 5)
    assert config.optim.warmup_steps == QUICKSTART["warmup_steps"]


def test_own_data_takes_nothing_of_the_builtin_run(recipe):
    flags = recipe(train_data="builtin", seed=4)
    assert parse([*flags, *TRAIN]).flat() == parse([*TRAIN, "--seed", "4"]).flat()
    assert parse(TRAIN).flat() == RunConfig().flat() | {"train_data": "rows.csv"}


@pytest.mark.parametrize(
    "words",
    [
        ["--bf16", "--fp16"],
        ["--batch_size", "0"],
        ["--gradient_accumulation_steps", "0"],
        ["--temperature", "0"],
        ["--candidates", "0"],
        ["--candidates", "some"],
        ["--max_steps", "0"],
        ["--num_train_epochs", "0"],
    ],
)
def test_contradictions(words):
    with pytest.raises(UserError):
        parse([*TRAIN, *words])


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    values = read_recipe(str(path))
    assert values
    build(values)


def test_files_are_found_from_here_then_where_they_ship(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shipped = find_file("ds_configs/zero2.json", "--deepspeed")
    assert shipped == ROOT / "ds_configs" / "zero2.json"
    (tmp_path / "ds_configs").mkdir()
    with pytest.raises(UserError, match="--deepspeed: no such file"):
        find_file("ds_configs", "--deepspeed")
    (tmp_path / "ds_configs" / "zero2.json").write_text("{}")
    assert find_file("ds_configs/zero2.json", "--deepspeed") == tmp_path / "ds_configs" / "zero2.json"


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_help_needs_no_heavy_library():
    code = """
import sys
from ds_rag.config.flags import parse
try:
    parse(["--help"])
except SystemExit as stop:
    heavy = {"torch", "transformers", "deepspeed", "datasets", "numpy", "yaml", "rich"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else stop.code)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    for key in OWNER:
        assert f"--{key}" in done.stdout


def test_the_module_itself_prints_help():
    done = subprocess.run([sys.executable, "launch/train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--refresh_index" in done.stdout


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1", "some", "nan", ""])
def test_a_refresh_fraction_that_is_no_share(value):
    with pytest.raises(UserError, match="--refresh_fraction") as caught:
        build({"refresh_fraction": value})
    assert "auto" in str(caught.value)


def test_refresh_fractions_that_are():
    for value in ("auto", "1", "0.01", "1.0"):
        assert build({"refresh_fraction": value}).evaluation.refresh_fraction == value


def test_the_best_weights_are_gone_when_async_figures_come():
    with pytest.raises(UserError, match="--load_best_model_at_end") as caught:
        build({"refresh_mode": "async", "load_best_model_at_end": True})
    assert "--refresh_mode" in str(caught.value)
    build({"refresh_mode": "async", "early_stopping_patience": 2})
    with pytest.raises(UserError, match="--refresh_staleness"):
        build({"refresh_staleness": 0})


OWN_ROWS = ["corpus", "eval_data", "query_column", "answer_column", "positive_column", "passages_column"]
OWN_ROWS += ["negatives_column", "id_column"]


@pytest.mark.parametrize("name", OWN_ROWS)
def test_what_tells_of_own_rows_is_no_setting_of_the_builtin_ones(name, recipe):
    """Without --train_data the almanac would be trained, and the flag ignored."""
    assert name in OF_OWN_ROWS
    named = [*recipe(train_data="builtin", **{name: "x"})]
    for argv in ([f"--{name}", "x"], ["--train_data", "builtin", f"--{name}", "x"], named):
        with pytest.raises(UserError, match="built-in rows") as caught:
            parse(argv)
        assert f"--{name} x" in str(caught.value) and "--train_data" in str(caught.value)
    assert parse([f"--{name}", "none"]).is_builtin
    assert parse([*TRAIN, f"--{name}", "x"]).flat()[name] == "x"


def test_the_columns_and_files_of_own_rows_are_all_known():
    of_files = {f.name for f in fields(SECTIONS["data"]) if f.default is None} - {
        "max_train_samples",
        "max_eval_samples",
        "fold",
    }
    assert of_files | {"on_bad_row", "cluster_column"} == set(OF_OWN_ROWS)
    with pytest.raises(UserError, match="built-in rows"):
        parse(["--on_bad_row", "skip"])


@pytest.mark.parametrize(
    "text", ["010", "0o10", "1_0", "0x10", "1:30", "+5", "5.0", "1e1", "'010'", "yes", "2001-01-01"]
)
def test_a_recipes_number_is_what_it_looks_like(text, recipe):
    """YAML reads the first as 8, the second as 10, the fourth as 16, the fifth as 90, the tenth as true."""
    with pytest.raises(UserError, match="seed: wrong type"):
        parse(recipe(f"train_data: x\nseed: {text}\n"))


def test_a_recipes_text_stays_what_it_is(recipe):
    text = "train_data: 2024-01-01\ncorpus: 1_000\nquery_prefix: 'no'\npassage_prefix: \"\"\noutput_dir: runs/012\n"
    config = parse(recipe(text + "prompt_template: |-\n  {passage}\n  {query}\nnormalize: True\nbf16: no\n"))
    assert (config.data.train_data, config.data.corpus) == ("2024-01-01", "1_000")
    assert (config.model.query_prefix, config.model.passage_prefix) == ("no", "")
    assert (config.run.output_dir, config.model.prompt_template) == ("runs/012", "{passage}\n{query}")
    assert (config.model.normalize, config.optim.bf16) == ("true", False)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nlearning_rate: 1.0\nseed: 2\n", "seed, in lines 1 and 3"),
        ("batch_size: 1\nper_device_train_batch_size: 2\n", "repeated key"),
        (BOMB, "an anchor or alias: a0"),
        ("seed: &one 1\nworld_seed: *one\n", "an anchor or alias"),
        ("base: &base {seed: 1}\n<<: *base\n", "an anchor or alias"),
        ("seed: !!int 3\n", "a tag"),
        ("train_data: !!python/object/apply:os.getcwd []\n", "a tag"),
        ("seed: 1\n---\nseed: 2\n", "a second document"),
        ("corpus: [a, b]\n", "corpus: a list or mapping"),
        ("corpus:\n  a: b\n", "corpus: a list or mapping"),
        ("[a]: b\n", "a list or mapping"),
        ("[" * 100_000, "a list or mapping"),
        ("seed: " + "[" * 100_000, "seed: a list or mapping"),
        ("# " + "x" * (1 << 20), "too large"),
    ],
)
def test_recipes_that_are_more_than_lines(text, says, recipe):
    with pytest.raises(UserError) as caught:
        parse([*TRAIN, *recipe(text)])
    assert says in str(caught.value)


def test_a_recipe_that_is_no_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"seed: \xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        parse([*TRAIN, "--config", str(tmp_path / "recipe.yaml")])
