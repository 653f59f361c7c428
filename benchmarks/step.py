"""Time, FLOPs, memory and exactness of one training step, computed in several ways on the same models and rows.

    python benchmarks/step.py                                      # a tiny shape, under 5 minutes on 2 cores
    python benchmarks/step.py --shape gpt2 --json step.json        # GPT-2 124M, about 10 minutes
    python benchmarks/step.py --count                              # FLOP ratios of larger shapes, on meta tensors

Timed are forward and backward of retriever and generator, with the variants interleaved in one process. The optimizer's
update is the same in all variants and not included. Memory is measured in a child process for each variant: the peak
above what is resident after the models are built. The variants are in variants.py, the FLOPs in counting.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from counting import count_step, count_table
from measure import interleave, quartiles, ratios, table
from memory_child import peak_of_child
from variants import NAIVE, ONE_PASS, PADDED, SHAPES, Bench, Size

# key -> (at least or at most, goal), with --shape gpt2 --batch 8 --passage 160 --query 20 --answer 20
GOALS: dict[str, tuple[str, float]] = {
    "speedup_vs_naive": (">=", 3.3),
    "exact_speedup_vs_naive": (">=", 2.4),
    "posterior_speedup_vs_naive": (">=", 4.0),
    "memory_vs_naive": ("<=", 0.28),
    "exact_memory_vs_naive": ("<=", 0.10),
    "per_cell_speedup_vs_padded": (">=", 5.3),
    "positive_only_speedup": (">=", 1.4),
    "answer_only_speedup": (">=", 2.0),
    "positive_only_memory": ("<=", 0.5),
    "useful_flop_rate": (">=", 0.7),
    "max_relative_gradient_error": ("<=", 3e-5),
}
MATMUL = "matrix product"
# For the measurement of memory malloc returns large tensors at once: the figure is what the step needs, not what the
# allocator caches.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


def main() -> int:
    args = arguments()
    if args.count:
        rows = count_table()
        print(table(rows))
        write(args.json, {"counted": rows})
        return 0
    size = Size(args.shape, args.batch, args.passage, args.query, args.answer)
    if args.child:
        return peak_of_child(Bench(size), args.child)
    bench = Bench(size)
    product, product_flops = matrix_product(size)
    flops = {name: count_step(bench, name) for name in bench.variants}  # also the warm-up
    errors = gradient_errors(bench)
    names = [*bench.variants, MATMUL]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls: dict[str, Callable[[], object]] = {name: partial(bench.run, name) for name in bench.variants}
    calls[MATMUL] = product
    product()
    random.seed(0)
    for repeat in range(args.repeats):
        for name, values in interleave(calls, 1, seed=repeat).items():
            seconds[name] += values
        print(f"repeat {repeat + 1}/{args.repeats} done", file=sys.stderr, flush=True)
    memory = {} if args.no_memory else measure_memory(args, list(bench.variants))
    results = summary(bench, seconds, flops, memory, errors, product_flops)
    show(bench, seconds, flops, memory, results)
    write(args.json, results)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--batch", type=int, default=8, help="queries, and passages: every query reads every passage")
    parser.add_argument("--passage", type=int, default=160, help="tokens of a passage")
    parser.add_argument("--query", type=int, default=20, help="tokens of a query")
    parser.add_argument("--answer", type=int, default=20, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--count", action="store_true", help="only count FLOPs, of many shapes")
    parser.add_argument("--no_memory", action="store_true", help="do not measure memory (no child processes)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def matrix_product(size: Size) -> tuple[Callable[[], object], float]:
    """(a function that computes large matrix products in the model's dtype, FLOPs of one call)."""
    n = 4096 if size.shape == "gpt2" else 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    return lambda: [a @ b for _ in range(4)], 4 * 2.0 * n**3


def gradient_errors(bench: Bench) -> dict[str, float]:
    """Relative error of the gradients of each exact variant: the norm of the difference over the norm, over all
    parameters of both models."""
    errors = {}
    for base, names in bench.equal.items():
        bench.run(base)
        wanted = bench.gradients()
        for name in names:
            bench.run(name)
            found = bench.gradients()
            errors[name] = float((found - wanted).norm() / wanted.norm())
    return errors


def measure_memory(args: argparse.Namespace, names: list[str]) -> dict[str, dict[str, float]]:
    """Memory of every variant. Small shapes run two at a time, because most of the time is start-up."""
    with ThreadPool(2 if args.shape == "tiny" else 1) as pool:
        return dict(zip(names, pool.map(lambda name: child_memory(args, name), names, chunksize=1), strict=True))


def child_memory(args: argparse.Namespace, name: str) -> dict[str, float]:
    """MB of one variant, measured in a process that runs nothing else."""
    options = ["shape", "batch", "passage", "query", "answer"]
    command = [sys.executable, str(Path(__file__)), "--child", name]
    command += [text for option in options for text in (f"--{option}", str(getattr(args, option)))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | ALLOCATOR)
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(
    bench: Bench,
    seconds: dict[str, list[float]],
    flops: dict[str, float],
    memory: dict[str, dict[str, float]],
    errors: dict[str, float],
    product_flops: float,
) -> dict[str, Any]:
    """The values of the keys in GOALS, and the measurements behind them. Ratios are medians over the repeats."""

    def times(slow: str, fast: str) -> float:
        return statistics.median(ratios(seconds[slow], seconds[fast]))

    cells = bench.size.batch
    rate = [flops[ONE_PASS] / s for s in seconds[ONE_PASS]]
    peak = [product_flops / s for s in seconds[MATMUL]]
    keys: dict[str, float] = {
        "speedup_vs_naive": times(NAIVE, ONE_PASS),
        "exact_speedup_vs_naive": times(NAIVE, "exact"),
        "posterior_speedup_vs_naive": times(NAIVE, "posterior 1/8" if cells == 8 else "posterior 1 cell"),
        "sample_speedup_vs_naive": times(NAIVE, "sample"),
        "per_cell_speedup_vs_padded": times(PADDED, ONE_PASS) * cells,
        "positive_only_speedup": times(PADDED, "positive only"),
        "answer_only_speedup": times(PADDED, "positive only, answer tokens"),
        "useful_flop_rate": statistics.median(ratios(rate, peak)),
        "max_relative_gradient_error": max(errors.values()),
    }
    if memory:
        of = {name: m["peak_mb"] for name, m in memory.items()}
        keys |= {
            "memory_vs_naive": of[ONE_PASS] / of[NAIVE],
            "exact_memory_vs_naive": of["exact"] / of[NAIVE],
            "positive_only_memory": of["positive only"] / of[PADDED],
        }
        held = {name: m["activations_mb"] for name, m in memory.items()}
        keys |= {
            "exact_activations_vs_naive": held["exact"] / held[NAIVE],
            "one_pass_activations_vs_naive": held[ONE_PASS] / held[NAIVE],
        }
    return keys | {
        "size": vars(bench.size),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "flops": flops,
        "memory": memory,
        "gradient_errors": errors,
        "matrix_product_gflops": statistics.median(peak) / 1e9,
    }


def show(
    bench: Bench,
    seconds: dict[str, list[float]],
    flops: dict[str, float],
    memory: dict[str, dict[str, float]],
    results: dict[str, Any],
) -> None:
    rows = []
    for name in bench.variants:
        low, middle, high = quartiles(seconds[name])
        ratio = statistics.median(ratios(seconds[NAIVE], seconds[name]))
        rows.append(
            {
                "variant": name,
                "seconds": f"{middle:.3g} ({low:.3g}-{high:.3g})",
                "naive / this": f"{ratio:.2f}",
                "GFLOP": f"{flops[name] / 1e9:,.1f}",
                "naive / this, FLOPs": f"{flops[NAIVE] / flops[name]:.2f}",
                "peak MB": f"{memory[name]['peak_mb']:,.0f}" if memory else "-",
                "activations MB": f"{memory[name]['activations_mb']:,.0f}" if memory else "-",
            }
        )
    print(table(rows))
    print(f"\n{MATMUL}: {results['matrix_product_gflops']:.0f} GFLOP/s on {results['threads']} threads\n")
    goals = bench.size == Size("gpt2", 8, 160, 20, 20)
    lines = []
    for key, (relation, goal) in GOALS.items():
        if key in results:
            value = results[key]
            holds = value >= goal if relation == ">=" else value <= goal
            line = {"key": key, "value": f"{value:.3g}", "goal": f"{relation} {goal:g}" if goals else "-"}
            lines.append(line | {"holds": ("yes" if holds else "NO") if goals else "-"})
    print(table(lines))


def write(path: str | None, results: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    begin = time.monotonic()
    code = main()
    if "--child" not in sys.argv:
        print(f"\n{time.monotonic() - begin:.0f} s in all")
    sys.exit(code)
