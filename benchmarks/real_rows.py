"""The recipe on real rows with the real command: zero-shot, infonce, positive_only and rag_sequence.

    python benchmarks/real_rows.py --train_data ROWS --eval_data DEV_BEIR --corpus DEV_BEIR --retriever ENCODER \\
        --json real_rows.json     # 7 runs: an hour or more

It prints a line for each run; the table at the end is that of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "ds_configs/recipes/real_encoder.yaml"
# variant: (flags on top of the recipe, number of seeds)
VARIANTS: dict[str, tuple[list[str], int]] = {
    "infonce": (["--objective", "infonce", "--contrastive_weight", "0"], 3),
    "rag_sequence": ([], 3),
    "positive_only": (["--objective", "positive_only", "--contrastive_weight", "0"], 1),
}
METRICS = ("recall@1", "recall@5", "recall@10", "mrr@10")


def run(data: list[str], flags: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """Runs one training run; returns its results.json."""
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "--config", RECIPE, *data, *flags]
    command += ["--num_train_epochs", "1", "--warmup_steps", "20"]  # the recipe's, when docs/ were measured
    command += ["--seed", str(seed), "--output_dir", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "results.json").read_text())


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: means over the seeds, and their range in brackets if there are several."""
    lines = [f"| | seeds | {' | '.join(METRICS)} | minutes |", "|---|---|" + "---|" * (len(METRICS) + 1)]
    before = next(iter(results.values()))[0]["before"]
    lines.append("| zero-shot | - | " + " | ".join(f"{before[m]:.3f}" for m in METRICS) + " | - |")
    for variant, runs in results.items():
        cells = []
        for metric in METRICS:
            values = [r["after"][metric] for r in runs]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        minutes = statistics.mean(r["seconds"] for r in runs) / 60
        lines.append(f"| {variant} | {len(runs)} | {' | '.join(cells)} | {minutes:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train_data", "eval_data", "corpus", "retriever"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", help="write every figure to this file, after every run")
    args = parser.parse_args()
    data = [word for n in ("train_data", "eval_data", "corpus", "retriever") for word in (f"--{n}", getattr(args, n))]
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for variant in args.variants:
            flags, seeds = VARIANTS[variant]
            for seed in range(seeds):
                result = run(data, flags, seed, Path(scratch) / f"{variant}-{seed}")
                results.setdefault(variant, []).append(result)
                figures = "  ".join(f"{m} {result['after'][m]:.3f}" for m in METRICS)
                print(f"{variant:14} seed {seed}  {figures}  {result['seconds']:.0f} s", flush=True)
                if args.json:
                    Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
