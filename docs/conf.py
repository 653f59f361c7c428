"""The settings of the documentation site: `make docs` builds it into `docs/_build/html`, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from ds_rag import __version__

project = "ds_rag"
author = "the authors of ds_rag"
copyright = "the authors of ds_rag, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "docstrings"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ds_rag {release}"
html_static_path: list[str] = []
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included README begins below the page's own title

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
