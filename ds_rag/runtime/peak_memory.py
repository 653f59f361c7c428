"""The most memory that this process has taken."""

from __future__ import annotations

import resource


def peak_memory_gb() -> float:
    """Peak memory of this process so far, in GB: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
