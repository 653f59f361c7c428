"""The claim of the built-in world: only with the marginal does the retriever learn which passage answers.

    python benchmarks/quickstart.py --json results.json            # 3 seeds, 3 variants, about 12 minutes on 2 cores

Each run is the real command in its own process, with its own seed for the weights, the row order and the almanac.
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
VARIANTS = {
    "marginal": [],
    "positive_only": ["--objective", "positive_only", "--assume_first_positive"],
    "retriever frozen": ["--freeze", "retriever"],
}
# Claims: (variant, when, metric, at least or at most, bound)
MUST = [
    ("marginal", "after", "recall@1", ">=", 0.80),
    ("marginal", "after", "exact_match", ">=", 0.80),
    ("positive_only", "after", "recall@1", "<=", 0.50),
    ("retriever frozen", "after", "exact_match", "<=", 0.40),
    ("marginal", "before", "recall@1", "<=", 0.50),
]


def run(flags: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """Runs one training run; returns its results.json."""
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "--output_dir", str(folder)]
    command += [
        "--seed",
        str(seed),
        "--world_seed",
        str(seed),
        "--save_steps",
        "0",
        "--refresh_index",
        "0",
        *flags,
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads((folder / "results.json").read_text())


def verdicts(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each claim with its worst value over the seeds, and whether it holds."""
    out = []
    for variant, when, metric, relation, bound in MUST:
        if variant in results:
            values = [r[when][metric] for r in results[variant]]
            worst = min(values) if relation == ">=" else max(values)
            holds = worst >= bound if relation == ">=" else worst <= bound
            claim = f"{variant}: {metric} {when} {relation} {bound}"
            out.append({"claim": claim, "worst": worst, "holds": holds})
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {v: [] for v in args.variants}
    print(f"{'variant':18} {'seed':>4} {'recall@1 before':>16} {'after':>6} {'mrr@10':>7} {'exact match':>12} {'s':>5}")
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(args.seeds):
            for variant in args.variants:
                result = run(VARIANTS[variant], seed, Path(scratch) / f"{variant.replace(' ', '-')}-{seed}")
                results[variant].append(result)
                before, after = result["before"], result["after"]
                print(
                    f"{variant:18} {seed:4} {before['recall@1']:16.3f} {after['recall@1']:6.3f} "
                    f"{after['mrr@10']:7.3f} {after['exact_match']:12.3f} {result['seconds']:5.0f}",
                    flush=True,
                )
    for variant, runs in results.items():
        means = {m: statistics.mean(r["after"][m] for r in runs) for m in ("recall@1", "exact_match")}
        print(f"{variant:18} mean {means['recall@1']:22.3f} {means['exact_match']:20.3f}")
    checks = verdicts(results)
    for check in checks:
        print(f"{'holds' if check['holds'] else 'FAILS'}  {check['claim']}  (worst {check['worst']:.3f})")
    if args.json:
        Path(args.json).write_text(json.dumps({"runs": results, "claims": checks}, indent=1) + "\n")
    return 0 if all(check["holds"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
