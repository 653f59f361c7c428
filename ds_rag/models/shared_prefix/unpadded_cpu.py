"""Attention over the shared-prefix layout without padding, on the CPU, where no gradient is wanted.

Scoring reads passages that have few or many cells, and answers that are short or long. Blocks of equal size
(flash_cpu.py) would be padding for the most part, so here each prefix and each segment has calls of its own.

Shape legend: T tokens of the row, H heads, D dimensions of a head.
"""

from __future__ import annotations

from itertools import accumulate

import torch

from ds_rag.models.shared_prefix.flash_cpu import flash
from ds_rag.models.shared_prefix.layout import SharedCells

Ranges = list[tuple[slice, list[slice]]]  # the tokens of each prefix, and of each of its segments


def unpadded_parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cells: SharedCells, scale: float) -> torch.Tensor:
    """What `FlashParts` returns, (T, H, D), without a graph and without sliding windows. q, k, v: (T, H, D), of keys
    and values perhaps fewer heads.

    The softmax of a segment's tokens over prefix and segment is made of two: with their log-sum-exps a and b the output
    is (e^a out_a + e^b out_b) / (e^a + e^b), in which out_b has the weight sigmoid(b - a).
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, T, D), views
    out = torch.empty(q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype, device=q.device)
    out_HTD = out.transpose(0, 1)
    for prefix, segments in ranges(cells):
        keys = k[:, :, prefix], v[:, :, prefix]
        out_HTD[:, prefix] = flash([q[:, :, prefix], *keys], None, scale, True)[0][0]
        if not segments:
            continue
        all_of_them = slice(segments[0].start, segments[-1].stop)
        before, lse_before = flash([q[:, :, all_of_them], *keys], None, scale, False)
        own = [flash([x[:, :, segment] for x in (q, k, v)], None, scale, True) for segment in segments]
        inside, lse_inside = (torch.cat(parts, 2) for parts in zip(*own, strict=True))
        weight = torch.sigmoid(lse_inside - lse_before)[..., None].to(before.dtype)
        out_HTD[:, all_of_them] = torch.lerp(before, inside, weight)[0]
    return out


def ranges(cells: SharedCells) -> Ranges:
    """Where each prefix and its segments are in the row; made once for all layers."""
    if "ranges" not in cells.masks:
        prefixes, rows = cells.prefixes.lengths, iter(cells.segments.lengths)
        starts = list(accumulate(prefixes, initial=0))
        place, found = starts.pop(), []
        for start, length, blocks in zip(starts, prefixes, cells.blocks_R, strict=True):
            segments = []
            for size in (next(rows) for _ in range(blocks * cells.block)):
                if size:
                    segments.append(slice(place, place + size))
                place += size
            found.append((slice(start, start + length), segments))
        cells.masks["ranges"] = found
    ready: Ranges = cells.masks["ranges"]
    return ready
