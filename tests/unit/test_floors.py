"""Imports only go down: a room may use the rooms below it and itself, never one above. A room is a folder of ds_rag/,
and `train.py`; a new file needs no entry here."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ds_rag"

# From the ground up. What may go into each is in its README.
FLOORS = ["runtime", "config", "losses", "data", "models", "index", "engines", "step", "evaluation", "run", "train"]
FLOORS += ["commands"]
FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE or p.name == "train.py"]
NOT_OURS = {"__pycache__", "shipped"}


def imports(nodes: Sequence[ast.AST], path: Path) -> Iterator[str]:
    """The modules that these import."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def all_imports(path: Path) -> set[str]:
    """At module level or inside functions."""
    return set(imports(list(ast.walk(ast.parse(path.read_text()))), path))


def first_imports(path: Path) -> set[str]:
    """At module level."""
    return set(imports(ast.parse(path.read_text()).body, path))


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in all_imports(path) if name.startswith("ds_rag.")} & set(FLOORS)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=inside)
def test_imports_go_down(path: Path) -> None:
    above = {other for other in rooms_imported(path) if FLOORS.index(other) > FLOORS.index(room_of(path))}
    assert not above, f"{inside(path)} imports {above}, above {room_of(path)}"


def test_every_room_has_a_floor_and_says_what_may_go_in() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir()} - NOT_OURS
    assert folders | {"train"} == set(FLOORS)
    for folder in folders:
        lines = (PACKAGE / folder / "README.md").read_text().splitlines()
        assert 5 <= len(lines) <= 15, folder


def test_the_top_has_at_most_14_entries() -> None:
    assert len({p.name for p in PACKAGE.iterdir()} - NOT_OURS) <= 14


def test_the_walk_sees_an_import_that_goes_up(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    from ds_rag.train import main\n    import ds_rag.commands.cli\n    from ds_rag import run\n"
    )
    assert rooms_imported(file) == {"train", "commands", "run"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """At module level; inside a function an import is late on purpose."""
    names = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    below = {name: first_imports(path) & names.keys() - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(below[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in names:
        visit(name, ())


# What answers before torch is there: of these rooms every file, and these files.
LIGHT = ["config/", "commands/plan/", "run/output_dir.py", "run/config_and_results.py", "run/trackers/"]
LIGHT += [f"runtime/{name}.py" for name in ("errors", "launcher_env", "credentials", "folder_lock", "own_files")]
LIGHT += [f"runtime/{name}.py" for name in ("output_places", "json_files", "standard_streams", "stop_signals")]
LIGHT += ["runtime/safe_loading.py", "runtime/atomic_files.py"]
HEAVY = {"transformers", "deepspeed", "datasets", "faiss", "matplotlib", "torchmetrics", "ir_measures", "pandas"}


def test_the_lower_rooms_import_no_heavy_library_at_module_level() -> None:
    assert not [name for name in LIGHT if not any(inside(path).startswith(name) for path in FILES)], "no such file"
    for path in FILES:
        light = inside(path).startswith(tuple(LIGHT)) or (room_of(path) == "commands" and path.name != "command.py")
        if light or room_of(path) in ("runtime", "losses", "step"):
            forbidden = HEAVY | ({"torch", "numpy"} if light else set())
            found = {name.split(".")[0] for name in first_imports(path)} & forbidden
            assert not found, f"{inside(path)}: {found}"
