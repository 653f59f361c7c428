"""The manifest of a sealed folder: whatever is done to it or to its files, it is opened whole or named as damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_rag.runtime import atomic_folders

QUICK = settings(deadline=None, derandomize=True, max_examples=150)
FILES = {"a.txt": b"first", "inner/b.bin": bytes(range(256)), "c": b""}
json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    final = tmp_path_factory.mktemp("sealed") / "step-1"
    part = atomic_folders.begin(final)
    for name, content in FILES.items():
        (part / name).parent.mkdir(exist_ok=True)
        (part / name).write_bytes(content)
    atomic_folders.seal(part, final, {"kind": "checkpoint", "step": 1})
    return final


def manifest_of(folder: Path) -> bytes:
    return (folder / atomic_folders.MANIFEST).read_bytes()


def with_manifest(folder: Path, content: bytes) -> list[atomic_folders.Damage]:
    """What is found with this manifest in the place of its own, which is put back."""
    own = manifest_of(folder)
    try:
        (folder / atomic_folders.MANIFEST).write_bytes(content)
        return atomic_folders.damages(folder)
    finally:
        (folder / atomic_folders.MANIFEST).write_bytes(own)


def test_as_it_was_written_it_is_sound(sealed: Path) -> None:
    assert atomic_folders.damages(sealed) == [] and set((atomic_folders.read_manifest(sealed) or {})["files"]) == set(
        FILES
    )


@QUICK
@given(content=st.binary(max_size=400))
def test_any_bytes_are_damage_and_never_an_exception(sealed: Path, content: bytes) -> None:
    assert with_manifest(sealed, content)


@QUICK
@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_manifest_never_goes_unseen(sealed: Path, place: int, bit: int) -> None:
    data = bytearray(manifest_of(sealed))
    place %= len(data)
    before = json.loads(bytes(data))
    data[place] ^= 1 << bit
    try:
        if json.loads(bytes(data)) == before:
            return  # a blank for another blank
    except ValueError:
        pass
    assert with_manifest(sealed, bytes(data))


@QUICK
@given(files=st.dictionaries(st.text(max_size=20) | st.just("../../etc/passwd"), json_values, max_size=4))
def test_entries_of_any_kind_under_a_right_seal_name_no_file_outside(sealed: Path, files: dict[str, Any]) -> None:
    """Even a manifest that someone made by hand, seal and all."""
    manifest = {"kind": "checkpoint", "files": files}
    content = json.dumps(manifest | {"seal": atomic_folders.seal_of(manifest)}).encode()
    wrong = with_manifest(sealed, content)
    assert len(wrong) == len(files)
    assert all(not Path(name).is_absolute() or damage for name, damage in zip(files, wrong, strict=True))


@QUICK
@given(name=st.sampled_from(sorted(n for n, content in FILES.items() if content)), place=st.integers(min_value=0))
def test_a_flipped_bit_of_any_file_is_named(sealed: Path, name: str, place: int) -> None:
    file = sealed / name
    own = file.read_bytes()
    data = bytearray(own)
    data[place % len(data)] ^= 1 << place % 8
    try:
        file.write_bytes(bytes(data))
        (damage,) = atomic_folders.damages(sealed)
        assert damage.file == name and "sha256" in damage.found
    finally:
        file.write_bytes(own)
