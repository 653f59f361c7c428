"""Makes small.py and bound.py importable from the rooms below, which mirror those of ds_rag/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_stand_in import Hub, serving


def read_environment_again() -> None:
    """What the hub's libraries take from the environment when they are imported; and what was fetched is forgotten."""
    import huggingface_hub.constants

    from ds_rag.data.hub_data import fetch_data
    from ds_rag.models.hub_models import fetch_model
    from ds_rag.runtime import hub

    importlib.reload(huggingface_hub.constants)
    if "datasets.config" in sys.modules:
        importlib.reload(sys.modules["datasets.config"])
    hub._silent.clear()
    fetch_data.cache_clear()
    fetch_model.cache_clear()


@pytest.fixture
def set_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`set_hub(HF_HUB_OFFLINE="1", ...)`: as if the process had begun with these variables."""

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        read_environment_again()

    yield set_all
    monkeypatch.undo()
    read_environment_again()


@pytest.fixture
def hub(set_hub: Callable[..., None], tmp_path: Path) -> Iterator[Hub]:
    """A hub on loopback, an empty cache, and an empty working directory `here`."""
    (tmp_path / "here").mkdir()
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "here")
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.delenv(name, raising=False)
        set_hub(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
        yield hub
