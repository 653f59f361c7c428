"""A data set in several numbered files (shards), as the hub, Spark and `to_parquet` loops write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ds_rag.data.bad_rows import Faults
from ds_rag.data.format import Format
from ds_rag.data.records import Record
from ds_rag.runtime.errors import UserError

# train-00000-of-00002, part-00000-<job>.c000.snappy, rows_7, 0000
NUMBER = re.compile(r"(?P<split>.*?)[-_.]?(?P<n>\d+)((-of-|_of_)(?P<of>\d+))?")
SPARK = re.compile(r"part-\d+.*")


def split_of(file: Path) -> str | None:
    """The part of the file name before the number; None where it has no number."""
    if SPARK.fullmatch(file.stem):
        return "part"
    match = NUMBER.fullmatch(file.stem)
    return match["split"] if match else None


def shards_of(files: Collection[Format]) -> Format:
    """The format of a folder whose files are one data set in shards, each of one of these formats."""

    def recognises(path: Path) -> bool:
        return path.is_dir() and bool(find_shards(path, files))

    def read(path: Path, what: str, faults: Faults) -> Iterator[Record]:
        return read_shards(path, what, faults, files)

    return Format("a folder of numbered shards of such files", recognises, read)


def find_shards(folder: Path, formats: Collection[Format]) -> list[Path]:
    """The shards in a folder: files of one format, all numbered. Empty where the files differ in format or have no
    number."""
    readable = (f for f in folder.iterdir() if not f.name.startswith((".", "_")) and format_of(f, formats))
    files = sorted(readable)
    one_kind = len({file.suffix.lower() for file in files}) == 1
    return files if one_kind and all(split_of(file) is not None for file in files) else []


def format_of(file: Path, formats: Collection[Format]) -> Format | None:
    return next((one for one in formats if one.recognises(file)), None)


def choose_split(files: list[Path], faults: Faults) -> list[Path]:
    """The shards of the only split, or of the split `train` for training rows, in the order of their numbers. Raises
    UserError for several splits, and where shards are missing according to the names."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file) or "", []).append(file)
    wanted = "train" if faults.of_training and "train" in splits else next(iter(splits))
    if len(splits) > 1 and wanted != "train":
        raise UserError(
            f"{faults.source} holds the pieces of more than one split",
            found=", ".join(splits),
            expected="one split" + (" or 'train'" if faults.of_training else ""),
            fix="put the pieces of one split into a folder of its own",
        )
    chosen = splits[wanted]
    matches = [NUMBER.fullmatch(file.stem) for file in chosen]
    totals = {int(match["of"]) for match in matches if match and match["of"]}
    if totals and (lost := max(totals) - len(chosen)) > 0:
        raise UserError(
            f"{faults.source}: pieces are missing",
            found=f"{len(chosen)} files, such as {chosen[0].name}",
            expected=f"{max(totals)}",
            fix=f"fetch the other {lost}",
        )
    return sorted(chosen, key=lambda file: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", file.name)])


def read_shards(folder: Path, what: str, faults: Faults, formats: Collection[Format]) -> Iterator[Record]:
    """The records of all shards in order."""
    for file in choose_split(find_shards(folder, formats), faults):
        last, kind = 0, format_of(file, formats)
        assert kind is not None, "it was found by its format"
        for record in kind.read(file, what, faults):
            last = record.number
            yield record
        faults.before += last + 1
