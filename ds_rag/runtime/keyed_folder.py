"""A folder below a cache's root for everything that was made in one way: its name is a hash of the key, and `key.json`
in it says the key in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_rag.runtime.atomic_files import replacing
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_place

KEY = "key.json"


def text_of(key: Mapping[str, Any]) -> str:
    return json.dumps(key, indent=1, sort_keys=True) + "\n"


def keyed_folder(root: str, flag: str, key: Mapping[str, Any]) -> Path:
    """Where the folder of this key is; nothing is made. flag: that gave the root, for errors. Raises UserError."""
    return check_place(root, flag) / hashlib.sha256(text_of(key).encode()).hexdigest()[:32]


def write_key(folder: Path, key: Mapping[str, Any], beside: Path, flag: str) -> None:
    """Writes `key.json` where it is not there yet, on one rank. beside: the path of the file while it is written.
    Raises UserError."""
    if (folder / KEY).exists():
        return
    try:
        with replacing(folder / KEY, beside) as stream:
            stream.write(text_of(key))
    except OSError as error:
        raise UserError(f"{flag}: {folder} cannot be written", found=error, expected="a folder") from None
