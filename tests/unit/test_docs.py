"""The pages: every path they name exists, the site builds without a warning, and no link in it leads nowhere."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(ROOT.glob("ds_rag/*/README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), *ROOMS]
IN_A_RUN = {"retriever/", "generator/", "index/", "checkpoints/"}  # folders that a run writes


def paths_named(text: str) -> set[str]:
    """Files of Python and folders that stand in backticks."""
    return set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*(?:\.py|/))`", text))


def exists(named: str, page: Path) -> bool:
    """From the checkout, from the library, or from the page's own folder; a test also by its name alone."""
    if named.startswith("test_"):
        return any(ROOT.glob(f"tests/**/{named}"))
    known = named in IN_A_RUN or named.startswith("dalm/")  # the latter are another toolkit's
    return known or any((start / named).exists() for start in (ROOT, ROOT / "ds_rag", page.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_that_are_named_exist(page: Path) -> None:
    assert not {named for named in paths_named(page.read_text()) if not exists(named, page)}


def test_a_path_that_is_gone_is_seen() -> None:
    named = paths_named("`ds_rag/train.py`, `ds_rag/gone.py` and `step/`, not `--flag` or `a / b`")
    assert named == {"ds_rag/train.py", "ds_rag/gone.py", "step/"}
    assert {path for path in named if not exists(path, ROOT / "README.md")} == {"ds_rag/gone.py"}


def test_names_that_contributing_says_are_in_a_file_are_there() -> None:
    """`file.py`: `name`, or `file.py`: the table `NAME`."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([\w./]+\.py)`: (?:the table )?`([\w.]+)`", text)
    assert len(named) >= 10
    gone = [
        (path, name) for path, name in named if not re.search(rf"\b{name.split('.')[-1]}\b", (ROOT / path).read_text())
    ]
    assert not gone


class Links(HTMLParser):
    """What one page links to, and the names under which it can be linked to."""

    def __init__(self, page: Path):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> list[str]:
    """`page: link` for each link to a file or an anchor that is not there; of an external one only the form counts."""
    pages = {path.resolve(): Links(path) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                good = (url.scheme in ("http", "https") and "." in url.netloc) or url.scheme in ("data", "mailto")
            else:
                file = (path.parent / unquote(url.path)).resolve() if url.path else path
                anchors = pages[file].anchors if file in pages else set()
                good = file.is_file() and (not url.fragment or unquote(url.fragment) in anchors)
            if not good:
                broken.append(f"{path.relative_to(site.resolve())}: {target}")
    return broken


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a id="here" href="#here"></a><a href="a.html#there"></a><a href="b.html"></a>')
    assert broken_links(tmp_path) == ["a.html: a.html#there", "a.html: b.html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason="the site's builder is not installed: make docs")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(folder),
    ]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return folder


def test_no_link_of_the_site_leads_nowhere(site: Path) -> None:
    assert (site / "index.html").exists()
    assert not broken_links(site)


def test_the_site_has_every_public_name_and_every_page(site: Path) -> None:
    anchors = Links(site / "api.html").anchors
    for name in ("ds_rag", "ds_rag.losses"):
        module = importlib.import_module(name)
        public = [x for x in getattr(module, "__all__", ()) if callable(getattr(module, x))]
        assert not {x for x in public if f"{name}.{x}" not in anchors}
    assert {page.stem for page in ROOT.glob("docs/*.md")} <= {page.stem for page in site.glob("*.html")}


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    """docs/docstrings.py, which lies outside the package."""
    pytest.importorskip("sphinx", reason="the site's builder is not installed: make docs")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs/docstrings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_docstring_becomes_what_sphinx_reads(docstrings: ModuleType) -> None:
    text = """Sum over `K`, p_BK * q|z.

scores_BK: float, in
    nats.
loss_B: float

    a  b
    c  d

>>> f(1)
2

- one
- two

Args:
    x: a number

In memory, always: 4 bytes."""
    assert docstrings.translate(text.splitlines()) == [
        *("Sum over \\ ``K``\\ , p\\_BK \\* q\\|z.", ""),
        *("scores\\_BK", "    float, in nats.", "loss\\_B", "    float", ""),
        *("::", "", "        a  b", "        c  d", ""),
        *("::", "", "    >>> f(1)", "    2", ""),
        *("- one", "- two", ""),
        *(".. rubric:: Args", "", "x", "    a number", "", ""),
        *("In memory, always: 4 bytes.", ""),
    ]
