"""`ds-rag merge --run RUN`: whole models from a run that learned adapters."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ds_rag import export
from ds_rag.errors import UserError
from ds_rag.log import Console
from ds_rag.models.adapters import ADAPTER_FILE
from ds_rag.saved import open_saved


def main(args: argparse.Namespace) -> int:
    """The command; its flags are in cli.py. Each adapter is added to its base, as every command here opens it."""
    if not args.run:
        raise UserError("no run to merge", expected="--run RUN")
    run = Path(args.run)
    out = Path(args.out) if args.out else run / "merged"
    export.ready(run, hashes=False)
    names = [name for name in ("retriever", "generator") if any((run / name).rglob(ADAPTER_FILE))]
    if not names:
        raise UserError(f"{run}: nothing to merge", found="whole models", expected=f"{ADAPTER_FILE} in one of them")
    if out.exists() and any(out.iterdir()):
        raise UserError("--out is not empty", found=out, expected="a new or empty folder")
    console = Console()
    args.load_in_4bit = "none"  # the sum in full precision, whatever the adapter learned beside
    saved = open_saved(args, {"out"})
    for name in names:
        model = saved.retriever if name == "retriever" else saved.generator
        assert model is not None
        model.save(out / name)
        if (run / name / "README.md").is_file():
            shutil.copy(run / name / "README.md", out / name)
        console.say(f"{name:10} {out / name}")
    return 0
