from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ds_rag.models.sharded import full_copy_notice

STAGE_3: dict[str, Any] = {"zero_optimization": {"stage": 3}}


def test_a_large_new_model_at_stage_3_is_spoken_of() -> None:
    with torch.device("meta"):
        large, small = nn.Linear(1 << 15, 1 << 16), nn.Linear(8, 8)
    note = full_copy_notice("generator", "config:big.json", large, STAGE_3)
    assert note is not None and "the generator is new" in note and "2.1e9 parameters" in note and "(9 GB" in note
    assert full_copy_notice("generator", "config:big.json", small, STAGE_3) is None
    assert full_copy_notice("generator", "config:big.json", large, None) is None  # another stage
    assert full_copy_notice("generator", "folder", large, STAGE_3) is None
    assert full_copy_notice("generator", "config:big.json", None, STAGE_3) is None
