"""The optimizer and the schedule of a DeepSpeed file, and its absurd values: nothing is compiled, what a flag says is
not dropped, and mistakes show before a model is opened.

The variants: optimizers of torch, of DeepSpeed with and without an operator, with the optimizer on the host, of another
package, unknown; their parameters; schedulers with and without a warm-up; numbers, sizes, depth.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_deepspeed_config import KNOWN

from ds_rag.config import build
from ds_rag.config.deepspeed_config import load, optimizers, resolve
from ds_rag.config.deepspeed_config.optimizers import OPERATORS, check_optimizer, check_schedule, check_with_deepspeed
from ds_rag.engines.setup import plan_engines
from ds_rag.runtime.errors import UserError

OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def with_optimizer(name: str, **params: object) -> dict[str, object]:
    return {"optimizer": {"type": name, "params": params}}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "adam", "adamw"])
@pytest.mark.parametrize("more", [{}, OFFLOAD], ids=["", "offload"])
def test_adam_is_torchs_with_the_flags_for_what_the_file_leaves_out(name, more):
    raw = with_optimizer(name, weight_decay=0.3) | more
    check_optimizer(raw, "--deepspeed")
    assert resolve(raw, replace(KNOWN, weight_decay=0.3))["optimizer"]["params"] == {
        "lr": 3e-4, "betas": [0.91, 0.98], "eps": 1e-7, "weight_decay": 0.3, "torch_adam": True, "fused": True,
    }  # fmt: skip
    bare = {"optimizer": {"type": name}} | more
    assert resolve(bare, KNOWN)["optimizer"]["params"]["lr"] == 3e-4


@pytest.mark.parametrize(
    ("raw", "operator"),
    [
        (with_optimizer("Lamb"), "fused_lamb"),
        (with_optimizer("Lion"), "fused_lion"),
        (with_optimizer("Lion") | OFFLOAD, "cpu_lion"),
        (with_optimizer("Adagrad") | OFFLOAD, "cpu_adagrad"),
        (with_optimizer("Muon"), "fused_adam"),
        (with_optimizer("AdamW", torch_adam=False), "fused_adam"),
        (with_optimizer("AdamW", torch_adam=False) | OFFLOAD, "cpu_adam"),
    ],
    ids=lambda x: json.dumps(x)[:50],
)
def test_an_operator_that_is_not_built_is_refused_with_how_to_build_it(raw, operator, monkeypatch):
    asked = []
    monkeypatch.setattr(optimizers, "is_built", lambda name: asked.append(name) or False)
    with pytest.raises(UserError, match="not compiled here") as caught:
        check_optimizer(raw, "--deepspeed_generator")
    assert asked == [operator] and f"DS_BUILD_{operator.upper()}=1" in str(caught.value)
    monkeypatch.setattr(optimizers, "is_built", lambda name: True)
    check_optimizer(raw, "--deepspeed_generator")


def test_an_operator_counts_as_built_where_torch_left_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not optimizers.is_built("fused_lamb")
    (tmp_path / "fused_lamb").mkdir()
    assert not optimizers.is_built("fused_lamb")  # begun, not made
    (tmp_path / "fused_lamb" / "fused_lamb.so").touch()
    assert optimizers.is_built("fused_lamb")


def test_the_table_knows_deepspeeds_own_optimizers_and_torchs_place_of_extensions(monkeypatch):
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    from torch.utils.cpp_extension import _get_build_directory

    assert set(DEEPSPEED_OPTIMIZERS) == set(OPERATORS) | set(optimizers.OF_MUP)
    monkeypatch.setattr("os.makedirs", lambda *args, **more: None)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert _get_build_directory("x", False) == f"{optimizers.extensions_root()}/x"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (with_optimizer("OneBitAdam"), "unknown optimizer"),
        (with_optimizer("AdamWW"), "did you mean AdamW?"),
        (with_optimizer("LBFGS"), "unknown optimizer"),
        (with_optimizer("lr_scheduler"), "unknown optimizer"),
        (with_optimizer("MuAdam"), "pip install mup"),
        (with_optimizer("AdamW", max_grad_norm=1.0), "gradient_clipping"),
        (with_optimizer("AdamW", bias_correction=True), "bias_correction"),
        (with_optimizer("SGD", betas=[0.9, 0.9]), "betas"),
    ],
    ids=lambda x: json.dumps(x)[:50],
)
def test_what_is_no_optimizer(raw, says):
    with pytest.raises(UserError) as caught:
        check_optimizer(raw, "--deepspeed")
    assert says in str(caught.value) and "--deepspeed" in str(caught.value)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "NAdam", "Adagrad"])
def test_torchs_own_pass_with_the_flags_rate(name):
    raw = with_optimizer(name)
    check_optimizer(raw, "--deepspeed")
    assert resolve(raw, KNOWN)["optimizer"]["params"] == {"lr": 3e-4}


def test_a_schedule_without_its_numbers_takes_the_flags():
    """DeepSpeed's own: 1000 steps of warm-up to a rate of 0.001."""
    found = {name: resolve({"scheduler": {"type": name}}, KNOWN)["scheduler"]["params"] for name in optimizers.WARMUPS}
    assert found == {
        "WarmupLR": {"warmup_num_steps": 11, "warmup_max_lr": 3e-4},
        "WarmupDecayLR": {"warmup_num_steps": 11, "total_num_steps": 123, "warmup_max_lr": 3e-4},
        "WarmupCosineLR": {"warmup_num_steps": 11, "total_num_steps": 123},
    }


@pytest.mark.parametrize(
    ("name", "flag", "clash"),
    [
        ("WarmupLR", "lr_scheduler_type", True),
        ("WarmupCosineLR", "lr_scheduler_type", True),
        ("OneCycle", "warmup_steps", True),
        ("WarmupLR", "warmup_steps", False),
        ("WarmupLR", "seed", False),
    ],
)
def test_a_schedule_of_the_file_and_one_by_flags(name, flag, clash):
    raw = {"scheduler": {"type": name}}
    check_schedule({}, frozenset({flag}), "--deepspeed")
    if not clash:
        return check_schedule(raw, frozenset({flag}), "--deepspeed")
    with pytest.raises(UserError, match="its own scheduler") as caught:
        check_schedule(raw, frozenset({flag}), "--deepspeed_retriever")
    assert name in str(caught.value) and f"--{flag}" in str(caught.value)
    return None


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (with_optimizer("Lamb"), "not compiled"),
        ({"scheduler": {"type": "WarmupLR"}}, "its own scheduler"),
        ({"zero_optimization": {"stage": 2, "sub_group_size": 1, "reduce_scatter": "perhaps"}}, "reduce_scatter"),
        ({"fp16": {"hysteresis": -1.5}}, "hysteresis"),
    ],
    ids=lambda x: json.dumps(x)[:40],
)
def test_a_run_says_so_before_it_reads_anything(tmp_path, raw, says, monkeypatch):
    monkeypatch.setattr(optimizers, "is_built", lambda name: False)
    (tmp_path / "ds.json").write_text(json.dumps(raw))
    flags = {"deepspeed": str(tmp_path / "ds.json"), "lr_scheduler_type": "cosine"}
    with pytest.raises(UserError, match=says):
        plan_engines(build(flags, frozenset(flags)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"gradient_clipping": NaN}', "NaN is not a number"),
        ('{"gradient_clipping": Infinity}', "Infinity is not a number"),
        ('{"gradient_clipping": 1e999}', "gradient_clipping: found inf"),
        ('{"aio": ' + "[" * 100_000, "not valid JSON"),
        ('{"steps_per_print": 0}', "steps_per_print: found 0"),
        ('{"fp16": {"initial_scale_power": 1000000000}}', "fp16.initial_scale_power: found 1,000,000,000"),
        ('{"zero_optimization": {"reduce_bucket_size": 1e18}}', "zero_optimization.reduce_bucket_size"),
        ('{"zero_optimization": {"reduce_bucket_size": 0}}', "zero_optimization.reduce_bucket_size"),
        ('{"zero_optimization": {"stage3_max_live_parameters": 1e30}}', "stage3_max_live_parameters"),
        ('{"aio": {"queue_depth": ' + "9" * 5000 + "}}", "not valid JSON"),
        ('{"aio": {"queue_depth": ' + " " * (1 << 20) + "1}}", "too large"),
    ],
    ids=lambda x: x[:60],
)
def test_absurd_values_in_a_file(tmp_path, text, says):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "ds.json", "--deepspeed")
    assert says in str(caught.value) and "--deepspeed" in str(caught.value)


def test_usual_values_pass(tmp_path):
    zero = {"stage": 3, "reduce_bucket_size": 5e8, "sub_group_size": 1e9, "stage3_prefetch_bucket_size": 5e7}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero, "fp16": {"loss_scale": 0}}))
    check_with_deepspeed(load(tmp_path / "ds.json"), "--deepspeed")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train_micro_batch_size_per_gpu", 10**9),
        ("gradient_accumulation_steps", 10**9),
        ("gradient_clipping", 1e30),
    ],
)
def test_what_a_file_and_a_flag_both_say_has_the_flags_bounds(path, value):
    with pytest.raises(UserError, match=path):
        resolve({path: value}, KNOWN)
