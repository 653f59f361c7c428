"""The cost of a checkpoint: seconds per save and per step, and DeepSpeed's own save of the same engines.

    python benchmarks/checkpoint_stall.py --json checkpoint_stall.json       # some minutes on 2 cores

`checkpoint.save` writes complete parameters and optimizer states of both engines, hashes every file, flushes all files
to disk (fsync) and renames the folder. `engine.save_checkpoint` only writes, so it is also measured with an fsync of
its files. Steps and saves alternate in one process: one rank on the CPU, ZeRO stage 2. Before each measurement, data
that earlier calls left in the system's write cache is flushed.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from joint_parts import make_steps
from joint_runs import LLAMA, MINILM, SMALL_BERT, Run
from measure import interleave, quartiles, ratios, table

from ds_rag.run import checkpoint
from ds_rag.run.checkpoint import TrainState
from ds_rag.runtime import collectives

EVERY = 500  # steps between saves, as by default
TIED: dict[str, Any] = LLAMA | {"num_hidden_layers": 6, "tie_word_embeddings": True}
TINY = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}
MIDDLE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 688}
SIZES: dict[str, Run] = {
    "1M": Run(SMALL_BERT | TINY | {"vocab_size": 4000}, TIED | TINY | {"vocab_size": 2000}),
    "10M": Run(SMALL_BERT, TIED | MIDDLE | {"vocab_size": 8000}),
    "50M": Run(MINILM, TIED),
}


def measure(run: Run, repeats: int, folder: Path) -> dict[str, Any]:
    """The figures of one size: medians over the repeats; ratios are computed within each repeat."""
    steps = make_steps(run)
    steps.engines.train()
    numbers, ours, theirs = count(1), folder / "run", folder / "deepspeed"

    def step() -> None:
        steps.step(0)

    def save() -> None:
        checkpoint.save(ours, steps.engines, TrainState(step=next(numbers)), keep=checkpoint.LEAST_KEPT)

    def deepspeed_save() -> None:
        for name, engine in steps.engines.learning.items():
            engine.save_checkpoint(str(theirs / name), tag="step")

    def deepspeed_save_to_disk() -> None:
        deepspeed_save()
        for file in files(theirs):
            to_disk(file)

    def clear() -> None:
        """Deletes DeepSpeed's last checkpoint; `save` itself deletes ours."""
        shutil.rmtree(theirs, ignore_errors=True)
        os.sync()

    variants = {"step": step, "save": save, "deepspeed": deepspeed_save, "deepspeed, on disk": deepspeed_save_to_disk}
    step()  # creates the optimizer's state
    sizes = []
    for variant, root in ((save, ours), (deepspeed_save, theirs)):
        variant()
        sizes.append(sum(file.stat().st_size for file in files(root)))
    seconds = interleave(variants, repeats, before=clear)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    parameters = sum(p.numel() for module in steps.engines.modules.values() for p in module.parameters())
    return {
        "parameters": parameters,
        "step_seconds": medians["step"],
        "save_seconds": medians["save"],
        "save_bytes": sizes[0],
        "mb_per_second": sizes[0] / 1e6 / medians["save"],
        "steps_a_save": medians["save"] / medians["step"],
        "share_of_time": medians["save"] / (EVERY * medians["step"] + medians["save"]),
        "deepspeed_seconds": medians["deepspeed"],
        "deepspeed_on_disk_seconds": medians["deepspeed, on disk"],
        "deepspeed_bytes": sizes[1],
        "times_deepspeed": quartiles(ratios(seconds["save"], seconds["deepspeed"])),
        "times_deepspeed_on_disk": quartiles(ratios(seconds["save"], seconds["deepspeed, on disk"])),
        "seconds": seconds,
    }


def files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def to_disk(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def row(size: str, found: dict[str, Any]) -> dict[str, str]:
    return {
        "size": size,
        "parameters": f"{found['parameters'] / 1e6:.1f}M",
        "s/step": f"{found['step_seconds']:.3f}",
        "s/save": f"{found['save_seconds']:.3f}",
        "MB": f"{found['save_bytes'] / 1e6:.0f}",
        "MB/s": f"{found['mb_per_second']:.0f}",
        "steps a save": f"{found['steps_a_save']:.1f}",
        f"of time at {EVERY}": f"{found['share_of_time']:.2%}",
        "DeepSpeed s": f"{found['deepspeed_seconds']:.3f}",
        "ours/its": f"{found['times_deepspeed'][1]:.2f}",
        "ours/its on disk": f"{found['times_deepspeed_on_disk'][1]:.2f}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to write the checkpoints (default: a temporary folder)")
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    logging.disable(logging.WARNING)
    collectives.start()
    found: dict[str, Any] = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            found[size] = measure(SIZES[size], args.repeats, Path(folder))
        gc.collect()
        print(f"{size}: {found[size]['save_seconds']:.3f} s a save", file=sys.stderr, flush=True)
        if args.json:
            written = {"save_steps": EVERY, "sizes": found}
            Path(args.json).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(table([row(size, figures) for size, figures in found.items()]))
    collectives.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
