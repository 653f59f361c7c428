"""Every shipped configuration loads, resolves and builds; each is also used by a run in this folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import ROOT

from ds_rag.config import deepspeed_config, find_file
from ds_rag.config.deepspeed_config import Known
from ds_rag.config.flags import parse

SHIPPED = {
    kind: sorted((ROOT / "ds_configs").glob(pattern))
    for kind, pattern in {"deepspeed": "*.json", "recipes": "recipes/*.yaml", "models": "models/*.json"}.items()
}
RUN_BY = {  # where each is run; the DeepSpeed files: test_objectives_run.py, which has its own list
    "quickstart.yaml": "test_quickstart.py",
    "tiny_encoder.json": "test_quickstart.py",
    "tiny_causal_lm.json": "test_quickstart.py",
    "real_encoder.yaml": "test_real_rows.py",
    "dalm.yaml": "test_real_rows.py",
    "small_causal_lm.json": "test_real_rows.py",
    "label_free.yaml": "test_readme.py",
}


def test_nothing_else_is_shipped():
    every = {f for f in (ROOT / "ds_configs").rglob("*") if f.is_file()}
    assert every == {f for files in SHIPPED.values() for f in files}
    assert {f.name for kind in ("recipes", "models") for f in SHIPPED[kind]} == set(RUN_BY)
    assert all((Path(__file__).parent / name).exists() for name in RUN_BY.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("file", SHIPPED["deepspeed"], ids=lambda f: f.name)
def test_deepspeed_files_resolve(file, precision):
    known = Known(
        per_device_batch=4, accumulation=2, world=2, max_grad_norm=1.0, learning_rate=1e-4, betas=(0.9, 0.99),
        eps=1e-8, weight_decay=0.0, warmup_steps=3, total_steps=10, precision=precision, hidden_size=64,
    )  # fmt: skip
    raw = deepspeed_config.load(file, "--deepspeed")
    assert deepspeed_config.adopt(raw, known) == known, "it leaves every value to the flags"
    resolved = deepspeed_config.resolve(raw, known)
    assert '"auto"' not in json.dumps(resolved)
    assert resolved["zero_optimization"]["stage"] == int(re.search(r"zero(\d)", file.name)[1])
    assert resolved["train_micro_batch_size_per_gpu"] == 4
    assert (resolved["bf16"]["enabled"], resolved["fp16"]["enabled"]) == (precision == "bf16", precision == "fp16")


@pytest.mark.parametrize("file", SHIPPED["recipes"], ids=lambda f: f.name)
def test_recipes_parse_and_name_files_that_exist(file):
    config = parse(["--config", str(file), "--train_data", "builtin"])
    for source in (config.model.retriever, config.model.generator):
        assert find_file(source.removeprefix("config:"), "--test").is_file()
    assert find_file(config.run.deepspeed, "--deepspeed").is_file()


@pytest.mark.parametrize("file", SHIPPED["models"], ids=lambda f: f.name)
def test_model_configurations_build(file):
    import transformers

    settings = json.loads(file.read_text())
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    auto = transformers.AutoModelForCausalLM if "causal_lm" in file.name else transformers.AutoModel
    if getattr(config, "cls_token_id", None) is not None:
        config.cls_token_id = config.sep_token_id = config.pad_token_id = None
    model = auto.from_config(config)
    assert model.config.hidden_size == settings["hidden_size"]
    unknown = [key for key in settings if key not in config.to_dict()]
    assert not unknown, "a misspelt key would be silently ignored"
