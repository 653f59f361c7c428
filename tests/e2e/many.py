"""Trains many variants in one process, to pay for the libraries once.   python many.py FOLDER VARIANTS.json

VARIANTS.json: {name: [flags]}. Each goes its whole way, `parse` to report, into FOLDER/name; a traceback is kept in
FOLDER/name/failed.txt. Under a launcher its ranks do so together.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from pathlib import Path


def main(folder: Path, variants: dict[str, list[str]]) -> None:
    import os

    from ds_rag.config.flags import parse
    from ds_rag.runtime import collectives
    from ds_rag.runtime.console import Console
    from ds_rag.train import main as train

    gc.freeze()  # DeepSpeed collects garbage many times for every engine: look only at what a run makes
    stop, collectives.stop = collectives.stop, lambda: None  # one process group for all
    for name, flags in variants.items():
        run = folder / name
        run.mkdir(parents=True, exist_ok=True)  # by whichever rank comes first
        try:
            first = os.environ.get("RANK", "0") == "0"
            with (run / "console.txt").open("a") as stream:
                train(parse([*flags, "--output_dir", str(run)]), run, Console(stream, speaks=first))
        except Exception:
            (run / "failed.txt").write_text(traceback.format_exc())
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
