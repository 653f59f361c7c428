"""The DeepSpeed JSON: what it may say, what the run adopts from it, what DeepSpeed gets."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ds_rag.config.deepspeed_config import Known, adopt, adopt_pair, load, resolve, while_loading
from ds_rag.config.deepspeed_config.keys import KEYS, RETIRED
from ds_rag.runtime.errors import UserError

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))
KNOWN = Known(
    per_device_batch=6,
    accumulation=3,
    world=2,
    max_grad_norm=0.7,
    learning_rate=3e-4,
    betas=(0.91, 0.98),
    eps=1e-7,
    weight_decay=0.02,
    warmup_steps=11,
    total_steps=123,
    precision="fp32",
    hidden_size=2048,
)
FULL = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "initial_scale_power": 12},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
        },
    },
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
    },
}


def known(*explicit: str, **values: object) -> Known:
    return replace(KNOWN, explicit=frozenset(explicit), **values)  # type: ignore[arg-type]


def check_refused(call, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in:\n{text}"
    return text


def test_every_auto_is_resolved():
    config = resolve(FULL, KNOWN)
    assert "auto" not in json.dumps(config)
    assert "train_batch_size" not in config  # DeepSpeed derives it from micro-batch x 1 x world
    assert config["train_micro_batch_size_per_gpu"] == 6
    assert config["gradient_accumulation_steps"] == 1 and config["gradient_clipping"] == 0.0
    assert config["bf16"] == {"enabled": False}
    assert config["fp16"] == {"enabled": False, "initial_scale_power": 12}
    assert config["optimizer"]["params"] == {
        "lr": 3e-4,
        "betas": [0.91, 0.98],
        "eps": 1e-7,
        "weight_decay": 0.02,
        "torch_adam": True,
        "fused": True,
    }
    assert config["scheduler"]["params"] == {
        "warmup_min_lr": 0,
        "warmup_max_lr": 3e-4,
        "warmup_num_steps": 11,
        "total_num_steps": 123,
    }
    assert config["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 2048 * 2048,
        "stage3_prefetch_bucket_size": 3774873,
        "stage3_param_persistence_threshold": 20480,
    }
    assert config["wall_clock_breakdown"] is False and config["zero_force_ds_cpu_optimizer"] is False
    assert config["steps_per_print"] > 10**9


def test_resolve_leaves_its_input_alone_and_writes_what_an_empty_json_leaves_out():
    before = copy.deepcopy(FULL)
    resolve(FULL, known(precision="bf16"))
    assert before == FULL
    config = resolve({}, known(precision="bf16"))
    assert config["bf16"] == {"enabled": True} and config["fp16"] == {"enabled": False}
    assert config["gradient_clipping"] == 0.0 and config["gradient_accumulation_steps"] == 1


def test_a_tiny_model_gets_no_tiny_bucket_and_no_warmup_is_one_step():
    config = resolve(FULL, known(hidden_size=16, warmup_steps=0))
    assert config["zero_optimization"]["reduce_bucket_size"] == 1 << 20
    assert config["scheduler"]["params"]["warmup_num_steps"] == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_accumulate_in_fp32_where_deepspeed_takes_it(stage, precision):
    for types in ({}, {"data_types": {"grad_accum_dtype": "auto"}}):
        config = resolve({"zero_optimization": {"stage": stage}, **types}, known(precision=precision))
        found = config.get("data_types", {}).get("grad_accum_dtype")
        assert found == ("fp32" if stage > 0 and precision != "fp32" else None)
    raw = {"zero_optimization": {"stage": stage}, "data_types": {"grad_accum_dtype": "fp16"}}
    if stage == 0 and precision != "fp16":
        check_refused(lambda: resolve(raw, known(precision=precision)), "grad_accum_dtype", "fp16", precision)
    else:
        assert resolve(raw, known(precision=precision))["data_types"]["grad_accum_dtype"] == "fp16"


def test_literal_values_become_the_runs():
    raw = copy.deepcopy(FULL)
    raw |= {"gradient_accumulation_steps": 5, "gradient_clipping": 0, "train_micro_batch_size_per_gpu": 4}
    raw["train_batch_size"] = 4 * 5 * 2
    raw["bf16"]["enabled"] = True
    raw["optimizer"]["params"] |= {"lr": 1e-5, "betas": [0.8, 0.9]}
    raw["scheduler"]["params"]["warmup_num_steps"] = 7
    ours = adopt(raw, KNOWN)
    assert ours == known(
        accumulation=5,
        max_grad_norm=0.0,
        per_device_batch=4,
        precision="bf16",
        learning_rate=1e-5,
        betas=(0.8, 0.9),
        warmup_steps=7,
    )
    config = resolve(raw, ours)
    assert config["gradient_accumulation_steps"] == 1 and config["train_micro_batch_size_per_gpu"] == 4
    assert config["bf16"]["enabled"] is True and config["scheduler"]["params"]["warmup_max_lr"] == 1e-5


def test_auto_and_equal_values_change_nothing():
    assert adopt(FULL, KNOWN) == KNOWN
    same = known("gradient_accumulation_steps", "max_grad_norm", "bf16", precision="bf16")
    raw = {"gradient_accumulation_steps": 3, "gradient_clipping": 0.7, "bf16": {"enabled": True}}
    assert adopt(raw, same) == same


def test_every_contradiction_is_listed_at_once():
    raw = {
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 2.0,
        "train_micro_batch_size_per_gpu": 5,
        "train_batch_size": 77,
        "fp16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.5, "betas": [0.1, 0.2]}},
    }
    flags = "gradient_accumulation_steps max_grad_norm per_device_train_batch_size bf16 learning_rate adam_beta2"
    text = check_refused(
        lambda: adopt(raw, known(*flags.split(), precision="bf16"), "--deepspeed_generator"),
        "--deepspeed_generator",
        "gradient_accumulation_steps: the JSON has 8, --gradient_accumulation_steps has 3",
        "gradient_clipping: the JSON has 2.0, --max_grad_norm has 0.7",
        "train_micro_batch_size_per_gpu: the JSON has 5, --per_device_train_batch_size has 6",
        "train_batch_size: the JSON has 77, the run has 36 = 6 per device x 3 accumulated x 2 ranks",
        "fp16.enabled: the JSON has true, --bf16 has bf16",
        "optimizer.params.lr: the JSON has 0.5, --learning_rate has 0.0003",
        "optimizer.params.betas: the JSON has [0.1, 0.2], --adam_beta2 has (0.91, 0.98)",
    )
    assert text.count("\n    - ") == 7


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"gradient_accumulation_steps": 0}, ["gradient_accumulation_steps", "0", "whole number from 1"]),
        ({"gradient_accumulation_steps": True}, ["true", "whole number"]),
        ({"train_micro_batch_size_per_gpu": "8"}, ["train_micro_batch_size_per_gpu", '"8"']),
        ({"gradient_clipping": -1}, ["gradient_clipping", "-1", "a number from 0"]),
        ({"optimizer": {"type": "AdamW", "params": {"betas": 0.9}}}, ["betas", "two numbers"]),
        ({"bf16": {"enabled": 1}}, ["bf16.enabled", "true, false or auto"]),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, ["bf16.enabled", "fp16.enabled has fp16"]),
        ({"train_batch_size": 35}, ["35", "36"]),
    ],
)
def test_values_that_nobody_can_use(raw, words):
    check_refused(lambda: adopt(raw, KNOWN), *words)


def test_a_literal_false_turns_off_the_precision_that_auto_chose_and_contradicts_a_flag():
    assert adopt({"bf16": {"enabled": False}}, known(precision="bf16")).precision == "fp32"
    assert adopt({"fp16": {"enabled": False}}, known(precision="bf16")).precision == "bf16"
    check_refused(lambda: adopt({"bf16": {"enabled": False}}, known("bf16", precision="bf16")), "--bf16 has bf16")


def test_resolving_what_was_never_adopted_is_check_refused():
    check_refused(lambda: resolve({"gradient_accumulation_steps": 4}, KNOWN), "the JSON has 4, the run has 3")
    raw = {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 99}}}
    assert adopt(raw, KNOWN) == KNOWN  # the run's length is not known that early
    check_refused(lambda: resolve(raw, KNOWN), "total_num_steps", "99", "123")


def test_two_files_share_what_both_engines_share():
    one = {"gradient_accumulation_steps": 5, "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}
    two = {"gradient_clipping": 3.0, "gradient_accumulation_steps": "auto", "bf16": {"enabled": True}}
    retriever, generator = adopt_pair(one, two, KNOWN)
    common = {"accumulation": 5, "max_grad_norm": 3.0, "precision": "bf16"}
    assert retriever == known(**common, learning_rate=1e-5) and generator == known(**common)
    two["gradient_accumulation_steps"] = 6
    check_refused(
        lambda: adopt_pair(one, two, KNOWN),
        "--deepspeed_generator",
        "the JSON has 6, --deepspeed_retriever gradient_accumulation_steps has 5",
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", ["not valid JSON"]),
        ("[1]", ["not an object", "list"]),
        ('{"fp16": {}, "fp16": {}}', ["repeated", "fp16"]),
        ('{"zero_optimisation": {}}', ["zero_optimisation: unknown key, did you mean 'zero_optimization'?"]),
        ('{"zero_optimization": {"stag": 1}}', ["zero_optimization.stag: ", "did you mean 'stage'?"]),
        ('{"bf16": {"enable": true}, "fp16": {"los_scale": 1}}', ["'enabled'", "'loss_scale'"]),
        ('{"optimizer": {"type": "AdamW", "parameters": {}}}', ["optimizer.parameters", "'params'"]),
        ('{"scheduler": {"params": {}}}', ["scheduler.type: missing"]),
        ('{"data_types": {"grad_acum_dtype": "fp32"}}', ["'grad_accum_dtype'"]),
        ('{"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}', ["'device'"]),
        ('{"bf16": true}', ["bf16: found bool, expected an object"]),
        ('{"bfloat16": {"enabled": true}}', ['its name is now "bf16"']),
        ('{"amp": {}}', ["amp: DeepSpeed has removed it"]),
        ('{"zero_optimization": {"stage": "auto"}}', ["silently mean no ZeRO"]),
        ('{"zero_optimization": {"stage": 4}}', ["found 4"]),
        ('{"managed_gradient_accumulation": false}', ["only true works here"]),
        ('{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}', ["only true works here"]),
        ('{"torch_autocast": {"enabled": true}}', ["only false works here"]),
    ],
)
def test_files_that_are_check_refused(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    check_refused(lambda: load(path, "--deepspeed_retriever"), "--deepspeed_retriever", *words)


def test_a_missing_file_names_the_flag_and_the_path(tmp_path):
    check_refused(lambda: load(tmp_path / "none.json", "--deepspeed"), "--deepspeed", "none.json", "No such file")


def test_leftovers_are_all_listed():
    raw = {
        "zero_optimization": {"stage": 2, "overlap_comm": "auto", "reduce_bucket_size": "auto"},
        "aio": {"queue_depth": "auto"},
        "steps_per_print": "auto",
        "data_types": {"keep_in_fp32_modules": "auto"},
    }
    text = check_refused(
        lambda: resolve(raw, known(hidden_size=None)),
        "zero_optimization.overlap_comm",
        "zero_optimization.reduce_bucket_size",
        "aio.queue_depth",
        "steps_per_print",
        "no hidden size",
    )
    assert "keep_in_fp32_modules" not in text  # "auto" is DeepSpeed's own word there


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_leave_what_is_ours_to_us_and_parse_in_deepspeed(path, precision):
    config_module = pytest.importorskip("deepspeed.runtime.config")
    raw = load(path)
    ours = known(precision=precision, world=1)
    assert adopt(raw, ours) == ours
    assert "optimizer" not in raw and "scheduler" not in raw  # both are the run's
    for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
        assert raw[key] == "auto"
    config = resolve(raw, ours)
    parsed = config_module.DeepSpeedConfig(copy.deepcopy(config))
    assert f"zero{parsed.zero_optimization_stage}" == path.stem.split("_")[0]
    assert (parsed.gradient_accumulation_steps, parsed.gradient_clipping) == (1, 0.0)
    assert parsed.train_batch_size == parsed.train_micro_batch_size_per_gpu == 6
    assert parsed.bfloat16_config.enabled == (precision == "bf16")
    assert parsed.float16_config.enabled == (precision == "fp16")


class Spy(dict):
    """A dictionary that remembers which keys it was asked for."""

    def __init__(self, **values):
        super().__init__(**values)
        self.asked = set()

    def __copy__(self):
        return self

    def keys(self):
        return self

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)


def test_our_lists_hold_exactly_the_keys_that_deepspeed_reads():
    config_module = pytest.importorskip("deepspeed.runtime.config")
    sections = {name: Spy() for name in ("data_types", "checkpoint", "activation_checkpointing", "aio")}
    sections |= {name: Spy(type="AdamW") for name in ("optimizer", "scheduler")}
    top = Spy(train_micro_batch_size_per_gpu=1, **sections)
    config_module.DeepSpeedConfig(top)
    assert top.asked == KEYS[""] | set(RETIRED)
    for name, section in sections.items():
        assert section.asked == KEYS[name], name


@pytest.mark.parametrize(
    "section, module, name",
    [
        ("zero_optimization", "zero.config", "DeepSpeedZeroConfig"),
        ("zero_optimization.offload_param", "zero.offload_config", "DeepSpeedZeroOffloadParamConfig"),
        ("zero_optimization.offload_optimizer", "zero.offload_config", "DeepSpeedZeroOffloadOptimizerConfig"),
        ("bf16", "precision_config", "DeepSpeedBF16Config"),
        ("fp16", "precision_config", "DeepSpeedFP16Config"),
    ],
)
def test_our_lists_hold_every_field_and_alias_of_deepspeeds_models(section, module, name):
    fields = getattr(pytest.importorskip(f"deepspeed.runtime.{module}"), name).model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    assert KEYS[section] == set(fields) | aliases


ZERO_PP = {"zero_hpz_partition_size": 8, "zero_quantized_weights": True, "zero_quantized_gradients": True}


def test_hierarchical_and_quantised_communication_pass_through():
    sizes = {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
    raw = {"zero_optimization": {"stage": 3, **ZERO_PP, **sizes}}
    resolved = resolve(raw, known(hidden_size=64))["zero_optimization"]
    assert {key: resolved[key] for key in ZERO_PP} == ZERO_PP
    assert (resolved["stage3_prefetch_bucket_size"], resolved["stage3_param_persistence_threshold"]) == (3686, 640)


def test_what_is_known_while_a_model_is_loaded_in_pieces():
    raw = {"zero_optimization": {"stage": 3, **ZERO_PP, "reduce_bucket_size": "auto"}}
    found = while_loading(raw, known(precision="bf16"))
    assert found is not None and found["zero_optimization"] == {"stage": 3, **ZERO_PP}
    assert found["bf16"] == {"enabled": True} and found["fp16"] == {"enabled": False}
    assert while_loading({"zero_optimization": {"stage": 2}}, known()) is None
    assert while_loading({}, known()) is None
