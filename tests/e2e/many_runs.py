"""The folders of many runs, which many.py makes in one process: those of `make test` at the first look at one of them,
the slow ones at the first look at one of theirs."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from commands import execute


class Runs(dict[str, Path]):
    """runs["zero2"]: that run's folder. flags: of each by name; command: what many.py is started with."""

    def __init__(
        self, folder: Path, flags: dict[str, list[str]], slow: Collection[str], command: Sequence[str]
    ) -> None:
        assert set(flags) >= set(slow), set(slow) - set(flags)
        self.folder, self.flags, self.slow, self.command = folder, flags, slow, command

    def __missing__(self, name: str) -> Path:
        names = [n for n in self.flags if (n in self.slow) == (name in self.slow)]
        listed = self.folder / f"{'slow' if name in self.slow else 'quick'}.json"
        listed.write_text(json.dumps({n: self.flags[n] for n in names}))
        execute([*self.command, Path(__file__).with_name("many.py"), self.folder, listed], timeout=900)
        self.update({n: self.folder / n for n in names})
        return self[name]
