"""Readers of Arrow tables: Parquet files and folders of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_rag.data.bad_rows import Faults
from ds_rag.data.format import Format, has_suffix, holds
from ds_rag.data.records import Record
from ds_rag.runtime.errors import UserError


def read_parquet(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000):
            yield from _arrow_records(batch, number, path, faults)
            number += len(batch)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(
            f"{faults.flag}: {path} is no readable Parquet file", found=f"{error}, after row {number}"
        ) from error


def _arrow_records(table: Any, before: int, path: Path, faults: Faults) -> Iterator[Record]:
    """The rows of an Arrow table or batch; before: the number of rows already read. A value that cannot be converted to
    Python (invalid UTF-8, a date beyond the calendar) is a fault of its row."""
    try:
        table.validate(full=True)  # wrong offsets in a damaged, memory-mapped file would lead to arbitrary memory
        for number, fields in enumerate(table.to_pylist(), start=before + 1):
            yield Record(fields, number, f"{path}:row {number}")
        return
    except (ValueError, OverflowError) as error:
        if len(table) == 1:
            number = before + 1
            what = f"a value cannot be read ({_why(table) or error})"
            faults.add(number, f"{path}:row {number}", f"{what}, expected UTF-8 text")
            return
    for n in range(len(table)):
        yield from _arrow_records(table.slice(n, 1), before + n, path, faults)


def _why(table: Any) -> str | None:
    """A message about the first byte that is not UTF-8 in this one row; None where that is not the cause."""
    import pyarrow

    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except ValueError as error:
            if column.type != pyarrow.string() or "UTF8" not in str(error):
                return f"'{name}': {error}"
            raw = column.cast(pyarrow.binary())[0].as_py()
            try:
                raw.decode()
            except UnicodeDecodeError as where:
                return f"'{name}' holds byte 0x{raw[where.start]:02x} at byte offset {where.start} of its text"
    return None


def read_saved_dataset(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """A Dataset, or a DatasetDict with one split or (for `--train_data`) a split `train`."""
    import datasets
    import pyarrow

    try:
        data: Any = datasets.load_from_disk(str(path))
    except (pyarrow.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{faults.source} is no readable datasets folder", found=str(error)) from error
    if isinstance(data, datasets.DatasetDict):
        splits = list(data)
        wanted = ["train"] if "train" in splits and faults.of_training else splits
        if faults.split:
            wanted = [name for name in splits if name == faults.split]
        if len(wanted) != 1:
            what = f"no split '{faults.split}'" if faults.split else "more than one split" if splits else "no split"
            raise UserError(
                f"{faults.flag}: {path} holds {what}",
                found=", ".join(splits) or None,
                expected="one split" + (" or 'train'" if faults.of_training else ""),
                fix=f"give one split's folder: {faults.flag} {path / splits[0]}" if splits else None,
            )
        data = data[wanted[0]]
    elif faults.split and str(data.split) != faults.split:
        raise UserError(f"{faults.flag}: {path} holds one split", found=str(data.split), expected=faults.split)
    number = 0
    try:
        for table in data.with_format("arrow").iter(1000):
            yield from _arrow_records(table, number, path, faults)
            number += len(table)
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        found = f"{error}, after row {number}"
        raise UserError(f"{faults.source} is no readable datasets folder", found=found) from error


PARQUET = Format("a .parquet file", has_suffix(".parquet"), read_parquet)
SAVED_DATASET = Format(
    "a folder of datasets' save_to_disk",
    holds("dataset_dict.json", "state.json"),
    read_saved_dataset,
    has_splits=True,
)
