"""`ds-rag train`: parses the flags, prepares the run's folder and console, and calls ds_rag/train.py."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import ds_rag
from ds_rag.config.flags import Parser, add_training_flags, config_of
from ds_rag.run import trackers
from ds_rag.run.output_dir import claim as claim_folder
from ds_rag.runtime import stop_signals
from ds_rag.runtime.launcher_env import allow_open_files
from ds_rag.runtime.log_capture import capture

SHOWN = (  # by `--help`; `--help all` shows every setting
    *("train_data", "eval_data", "eval_fraction", "corpus", "max_passage_length"),
    *("retriever", "generator", "freeze"),
    *("objective", "candidates_from", "index_candidates", "candidates", "teacher_cache"),
    *("per_device_train_batch_size", "learning_rate", "retriever_learning_rate"),
    *("num_train_epochs", "max_steps", "seed", "refresh_index"),
    *("output_dir", "deepspeed", "resume", "report_to"),
)


def add_flags(parser: Parser) -> None:
    add_training_flags(parser, own=SHOWN)


def main(args: argparse.Namespace) -> int:
    config = config_of(args)
    trackers.check_installed(config.run.report_to)
    allow_open_files(os.environ)
    stop_signals.watch()  # before the heavy imports, which take longer than a scheduler's patience
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        folder = claim_folder(config)
        console = capture(folder, rank)
    else:  # rank 0 may still be replacing the folder
        folder = Path(config.run.output_dir)
        console = capture(Path(tempfile.mkdtemp(prefix="ds_rag-")), rank)
    console.say(f"ds_rag {ds_rag.__version__}: loading libraries, rows and models")
    from ds_rag.train import main as run

    return run(config, folder, console)
