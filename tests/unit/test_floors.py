"""Imports only go down: a room may use the floors below it and itself, never a sibling or a floor above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ds_rag"

# A room is a module or a package directly below ds_rag. What a file's name promises is in CONTRIBUTING.md.
FLOORS: list[set[str]] = [
    {
        "errors",
        "config",
        "flags",
        "deepspeed_config",
        "launched",
        "meeting",
        "dist",
        "console",
        "log",
        "schedule",
        "random_state",
        "background",
        "faults",
        "stopping",
        "waiting",
        "commit",
        "halting",
        "masking",
        "terminal",
        "lock",
        "run_files",
        "export",
        "run_folder",
        "places",
        "own_files",
    },
    {"losses", "pooling", "metrics", "batch", "thinning", "drift", "collapse", "truncation"},
    {"models", "data", "index"},
    {"engine", "cards", "encode", "generate", "objective", "memory"},
    {"bad_steps", "passes", "engine_setup", "engine_state", "refresh", "snapshot"},
    {"scoring"},
    {"evaluate", "saved", "checkpoint", "candidates", "same_corpus"},
    {"assemble"},
    {"warmup", "report", "index_stage", "resume", "guards", "figures"},
    {"results"},
    {"train", "measure", "reindex", "merge", "mine", "ask", "verify", "plan", "check"},
    {"cli"},
]
FLOOR = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
# Ground-floor rooms stand on each other in this order; nothing else of the ground floor is imported by it.
GROUND_ORDER = [
    "errors",
    "masking",
    "own_files",
    "places",
    "terminal",
    "config",
    "flags",
    "deepspeed_config",
    "launched",
    "meeting",
    "dist",
    "console",
    "log",
    "schedule",
    "random_state",
    "background",
    "faults",
    "stopping",
    "waiting",
    "commit",
    "halting",
    "lock",
    "run_files",
    "export",
    "run_folder",
]


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports, at module level or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "ds_rag":
                found |= {alias.name for alias in node.names if alias.name in FLOOR}
            elif node.module and node.module.startswith("ds_rag."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ds_rag.")}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor: give it one here"
    for other in rooms_imported(path) - {room}:
        below = FLOOR[other] < FLOOR[room]
        ground = room in GROUND_ORDER and other in GROUND_ORDER
        if ground:
            below = GROUND_ORDER.index(other) < GROUND_ORDER.index(room)
        assert below, f"{path.name} on floor {FLOOR[room]} imports {other} on floor {FLOOR[other]}"


def test_every_floor_names_rooms_that_exist() -> None:
    rooms = {room_of(p) for p in FILES}
    assert set(FLOOR) == rooms


def test_the_walk_sees_an_import_that_goes_up(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from ds_rag.train import main\n    import ds_rag.cli\n    from ds_rag import dist\n")
    assert rooms_imported(file) == {"train", "cli", "dist"}


def test_ground_floor_and_mathematics_import_no_heavy_library_at_module_level() -> None:
    heavy = {
        "transformers",
        "deepspeed",
        "datasets",
        "faiss",
        "matplotlib",
        "torchmetrics",
        "ir_measures",
        "pandas",
    }
    light = {
        "errors",
        "config",
        "flags",
        "deepspeed_config",
        "launched",
        "lock",
        "masking",
        "own_files",
        "places",
        "run_files",
        "terminal",
        "run_folder",
        "schedule",
        "cli",
        "plan",
    }  # these not even torch
    for path in FILES:
        room = room_of(path)
        forbidden = heavy | ({"torch", "numpy"} if room in light else set())
        if room not in light and FLOOR[room] > 1:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {n.split(".")[0] for n in names} & forbidden, f"{path.name}: {names}"
