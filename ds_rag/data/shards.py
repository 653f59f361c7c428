"""A data set in several files (shards), as the hub, Spark and `to_parquet` loops write them: numbered, named like their
split (`train.jsonl`), or both; perhaps in folders (`data/train-00000-of-00002.parquet`, `train/0000.parquet`)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ds_rag.data.bad_rows import Faults
from ds_rag.data.format import Format, plain_name, suffix_of
from ds_rag.data.records import Record
from ds_rag.runtime.errors import UserError

# train-00000-of-00002, part-00000-<job>.c000.snappy, rows_7, 0000
NUMBER = re.compile(r"(?P<split>.*?)[-_.]?(?P<n>\d+)((-of-|_of_)(?P<of>\d+))?")
SPARK = re.compile(r"part-\d+.*")
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test")  # of a file without a number
DEPTH = 3  # folders below the given one that are looked into


def stem_of(file: Path) -> str:
    return plain_name(file).stem


def split_of(file: Path) -> str | None:
    """The part of the file name before the number, or the name of a split; None where it is neither."""
    stem = stem_of(file)
    if SPARK.fullmatch(stem):
        return "part"
    match = NUMBER.fullmatch(stem)
    if match:
        return match["split"]
    return stem if stem.lower() in SPLITS else None


def shards_of(files: Collection[Format]) -> Format:
    """The format of a folder whose files are one data set in shards, each of one of these formats."""

    def recognises(path: Path) -> bool:
        return path.is_dir() and bool(find_shards(path, files))

    def read(path: Path, what: str, faults: Faults) -> Iterator[Record]:
        return read_shards(path, what, faults, files)

    return Format("a folder of numbered shards of such files", recognises, read, has_splits=True)


def find_shards(folder: Path, formats: Collection[Format]) -> list[Path]:
    """The shards in a folder, or where it has no data files itself, in its folders: files of one format, all numbered
    or named like a split. Empty where the files differ in format or have other names."""
    level, files = [folder], list[Path]()
    for _ in range(1 + DEPTH):
        inside = [
            entry for place in level for entry in sorted(place.iterdir()) if not entry.name.startswith((".", "_"))
        ]
        files = [entry for entry in inside if format_of(entry, formats)]
        level = [entry for entry in inside if entry.is_dir()]
        if files or not level:
            break
    one_kind = len({suffix_of(file) for file in files}) == 1
    return files if one_kind and all(split_of(file) is not None for file in files) else []


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in order, without hidden files; nothing where it cannot be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    except OSError:
        return []


def format_of(file: Path, formats: Collection[Format]) -> Format | None:
    return next((one for one in formats if one.recognises(file)), None)


def by_split(folder: Path, files: Collection[Path]) -> dict[str, list[Path]]:
    """Name of a split -> its shards: the path of their folder below `folder`, and what precedes the number."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        inside = file.parent.relative_to(folder).as_posix()
        name = "/".join(part for part in ("" if inside == "." else inside, split_of(file) or "") if part)
        splits.setdefault(name, []).append(file)
    return splits


def choose_split(folder: Path, files: list[Path], faults: Faults) -> list[Path]:
    """The shards of the split that `FOLDER:SPLIT` names, of the only one, or of the split `train` for training rows, in
    the order of their numbers. Raises UserError for several splits, and where shards are missing according to the
    names."""
    splits = by_split(folder, files)
    wanted = faults.split or ("train" if faults.of_training else None)
    named = [name for name in splits if wanted and wanted in (name, name.rpartition("/")[2])]
    named = named or ([] if faults.split else list(splits))
    if len(named) != 1:
        last = {name: name.rpartition("/")[2] for name in splits}
        short = next((s if list(last.values()).count(s) == 1 else name for name, s in last.items()), "")
        raise UserError(
            f"{faults.source} holds the shards of more than one split"
            if not faults.split
            else f"{faults.flag}: {faults.path} holds no split '{faults.split}', or several",
            found=", ".join(splits),
            expected="one split" + (" or 'train'" if faults.of_training else ""),
            fix=f"name one: {faults.flag} {faults.path}:{short}",
        )
    chosen = splits[named[0]]
    matches = [NUMBER.fullmatch(stem_of(file)) for file in chosen]
    totals = {int(match["of"]) for match in matches if match and match["of"]}
    if totals and (lost := max(totals) - len(chosen)) > 0:
        raise UserError(
            f"{faults.source}: shards are missing",
            found=f"{len(chosen)} files, such as {chosen[0].name}",
            expected=f"{max(totals)}",
            fix=f"fetch the other {lost}",
        )
    return sorted(chosen, key=lambda file: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", file.name)])


def read_shards(folder: Path, what: str, faults: Faults, formats: Collection[Format]) -> Iterator[Record]:
    """The records of all shards in order."""
    for file in choose_split(folder, find_shards(folder, formats), faults):
        last, kind = 0, format_of(file, formats)
        assert kind is not None, "it was found by its format"
        for record in kind.read(file, what, faults):
            last = record.number
            yield record
        faults.before += last + 1
