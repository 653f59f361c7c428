"""The keys that DeepSpeed reads, and a reader of its JSON that treats unknown keys as errors.

DeepSpeed itself silently ignores unknown keys at the top level and in a few sections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_rag.config.bounds import MANY, number_text, real
from ds_rag.runtime.errors import UserError, nearest

AUTO = "auto"
MOST_BYTES = 1 << 20

# Every key that DeepSpeed 0.19.8 reads. A test compares this table with DeepSpeed's source, so it fails if an upgrade
# changes the keys.
KEYS: dict[str, frozenset[str]] = {
    section: frozenset(keys.split())
    for section, keys in {
        "": """activation_checkpointing aio autotuning bf16 checkpoint comet comms_logger
            communication_data_type compile csv_monitor data_efficiency data_types dataloader_drop_last
            datastates_ckpt disable_allgather disable_python_gc dump_state expert_parallel flops_profiler
            fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping
            gradient_predivide_factor hybrid_engine log_level managed_gradient_accumulation memory_breakdown
            optimizer pipeline prescale_gradients scheduler seq_parallel_communication_data_type
            steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size
            train_micro_batch_size_per_gpu use_data_before_expert_parallelism vocabulary_size
            wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
            zero_force_ds_cpu_optimizer zero_optimization""",
        "zero_optimization": """stage contiguous_gradients reduce_scatter reduce_bucket_size
            use_multi_rank_bucket_allreduce allgather_partitions allgather_bucket_size overlap_comm
            compute_grad_norm load_from_fp32_weights elastic_checkpoint offload_param offload_optimizer
            zenflow sub_group_size cpu_offload_param cpu_offload_use_pin_memory cpu_offload
            prefetch_bucket_size stage3_prefetch_bucket_size param_persistence_threshold
            stage3_param_persistence_threshold model_persistence_threshold
            stage3_model_persistence_threshold max_live_parameters stage3_max_live_parameters
            max_reuse_distance stage3_max_reuse_distance gather_16bit_weights_on_model_save
            stage3_gather_16bit_weights_on_model_save module_granularity_threshold
            stage3_module_granularity_threshold use_all_reduce_for_fetch_params
            stage3_use_all_reduce_for_fetch_params allgather_sequential stage3_allgather_sequential
            stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1
            round_robin_gradients parameter_alignment zero_hpz_partition_size zero_quantized_weights
            zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear
            pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks
            save_muon_momentum_buffer_in_memory leaf_module""",
        "zero_optimization.offload_param": """device nvme_path buffer_count buffer_size max_in_cpu
            pin_memory""",
        "zero_optimization.offload_optimizer": """device nvme_path buffer_count pin_memory pipeline_read
            pipeline_write fast_init ratio super_offload cpuadam_cores_perc""",
        "bf16": """enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads
            bf16_optimizer_states""",
        "fp16": """enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis
            consecutive_hysteresis min_loss_scale fp16_master_weights_and_grads""",
        "optimizer": "type params legacy_fusion",
        "scheduler": "type params",
        "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
        "checkpoint": """tag_validation checkpoint_serialization load_universal use_node_local_storage
            parallel_write writer""",
        "activation_checkpointing": """partition_activations number_checkpoints
            contiguous_memory_optimization synchronize_checkpoint_boundary profile cpu_checkpointing""",
        "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    }.items()
}
# The value of these keys must be a JSON object.
OBJECTS = frozenset(KEYS) - {""} | {"optimizer.params", "scheduler.params"}
REMOVED = """amp compression_training curriculum_learning eigenvalue elasticity graph_harvesting nebula
    progressive_layer_drop quantize_training sparse_attention sparse_gradients"""
RETIRED = {key: "DeepSpeed has removed it" for key in REMOVED.split()} | {"bfloat16": 'its name is now "bf16"'}
# With any other value a step would compute something else.
FIXED: dict[str, object] = {
    "managed_gradient_accumulation": True,
    "gradient_allreduce_op": "mean",
    "zero_optimization.compute_grad_norm": True,  # joint clipping and skipping need it
    "torch_autocast.enabled": False,  # it has a second loss scaler
}
# For these keys "auto" is a value that DeepSpeed itself understands.
ZENFLOW = "zero_optimization.zenflow."
OWN_AUTO = frozenset(
    {"data_types.keep_in_fp32_modules", "pipeline.stages", ZENFLOW + "select_strategy"}
    | {ZENFLOW + "select_interval", ZENFLOW + "update_interval"}
)


# Upper limits beyond any machine: DeepSpeed would allocate a bucket of any size, and compute 2 to any power. They
# are `real` because these files may write whole numbers as 5e8.
BUCKET = real(0, 10**10)
BOUNDED = {
    "zero_optimization.reduce_bucket_size": real(1, 10**10),
    "zero_optimization.allgather_bucket_size": real(1, 10**10),
    "zero_optimization.prefetch_bucket_size": BUCKET,
    "zero_optimization.stage3_prefetch_bucket_size": BUCKET,
    "zero_optimization.sub_group_size": real(1, 10**15),
    "fp16.initial_scale_power": real(0, 64),
    "fp16.loss_scale": real(0, 2.0**64),
    "fp16.loss_scale_window": real(1, MANY),
    "steps_per_print": real(1, 2**31 - 1),
}
ANY = real(-1e18, 1e18)


def load(path: str | Path, flag: str = "--deepspeed") -> dict[str, Any]:
    """Read and check one DeepSpeed JSON; `flag` is named in errors.

    Raises: UserError for a missing file, invalid JSON, a repeated or an unknown key.
    """
    path = Path(path)

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise UserError(f"{flag} {path}: repeated keys", found=", ".join(repeated), expected="each key once")
        return dict(pairs)

    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{flag} {path}: too large", found=f"{path.stat().st_size:,} bytes", expected="a JSON file")
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read", found=error.strerror, expected="a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{flag} {path}: not valid JSON", found=error, expected="a JSON object") from error
    if not isinstance(raw, dict):
        raise UserError(f"{flag} {path}: not an object", found=type(raw).__name__, expected='{"key": value, ...}')
    check_config(raw, flag)
    return raw


def check_config(raw: dict[str, Any], flag: str = "--deepspeed") -> None:
    """Raises one UserError that lists every unknown or removed key and every wrong value of a configuration."""
    wrong = [
        f"{path}: found {type(get(raw, path)).__name__}, expected an object"
        for path in sorted(OBJECTS)
        if get(raw, path) is not None and not isinstance(get(raw, path), dict)
    ]
    for section, known in KEYS.items():
        values = get(raw, section) if section else raw
        for key in values if isinstance(values, dict) else ():
            path = f"{section}.{key}" if section else key
            close = nearest(key, known)
            if not section and key in RETIRED:
                wrong.append(f"{path}: {RETIRED[key]}")
            elif key not in known:
                wrong.append(f"{path}: unknown key" + (f", did you mean '{close}'?" if close else ""))
    for path, value in FIXED.items():
        if get(raw, path) not in (None, value):
            wrong.append(f"{path}: found {json.dumps(get(raw, path))}, only {json.dumps(value)} works here")
    for section in ("optimizer", "scheduler"):
        if isinstance(raw.get(section), dict) and not isinstance(raw[section].get("type"), str):
            wrong.append(f"{section}.type: missing, and without it DeepSpeed ignores the section")
    stage = get(raw, "zero_optimization.stage")
    if stage == AUTO:
        wrong.append('zero_optimization.stage: "auto" would silently mean no ZeRO, write 0, 1, 2 or 3')
    elif stage is not None and (type(stage) is not int or stage not in range(4)):
        wrong.append(f"zero_optimization.stage: found {json.dumps(stage)}, expected 0, 1, 2 or 3")
    for path, number in numbers_in(raw):
        bounds = BOUNDED.get(path, ANY)
        if not bounds.holds(number):
            wrong.append(f"{path}: found {number_text(number)}, expected {bounds}")
    if wrong:
        raise UserError(f"{flag}: the DeepSpeed configuration has mistakes", found=one_below_another(wrong))


def numbers_in(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yields (dotted path, number) for every number in a configuration."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_in(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def get(config: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or None if it is absent."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None  # type: ignore[assignment]
    return config


def put(config: dict[str, Any], path: str, value: object) -> None:
    """Sets the value at a dotted path; creates missing sections."""
    *parents, last = path.split(".")
    for key in parents:
        if not isinstance(config.get(key), dict):
            config[key] = {}
        config = config[key]
    config[last] = value


def one_below_another(lines: list[str]) -> str:
    """The lines as a list, for a UserError."""
    return "".join(f"\n    - {line}" for line in lines)
