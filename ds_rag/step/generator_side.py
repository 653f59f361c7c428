"""The generator's side of a step: every cell's log-probabilities, and the backward from their gradients.

    one_pass   one forward whose graph is kept: fastest, memory of all cells
    exact      scored chunk by chunk without a graph, then each chunk forward and backward: memory of one chunk, a
               third more work, the same gradient
    auto       one_pass where its predicted memory fits the budget, else exact
    posterior  as exact, but cells of small weight have no backward; the dropped mass is reported
    sample     as exact, but one cell for each query has a backward, drawn by weight: unbiased

Shape legend: C cells, A tokens of the longest target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ds_rag.config import ScoringConfig
from ds_rag.data.batch import Batch, CellList, list_cells
from ds_rag.engines.joint import Engines
from ds_rag.models.generator import Generator
from ds_rag.models.head import KEEP_BYTES
from ds_rag.runtime import collectives
from ds_rag.step.activation_memory import CellCost, budget_bytes, measure_cost
from ds_rag.step.cell_selection import draw_one, keep_heavy
from ds_rag.step.two_pass import Gradients, Inputs, OnePass, Pass, TwoPass

THINNED = ("posterior", "sample")
# Chunks of more tokens than this only cost memory: the matrix products already run at full rate.
ENOUGH_TOKENS = {"cpu": 2048, "cuda": 16384}


class Scoring:
    """`forward` gives the leaf of all cells' log-probabilities; after the objective's backward, `backward`."""

    def __init__(
        self,
        engines: Engines,
        generator: Generator,
        config: ScoringConfig,
        pad: int,
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
        processes: int = 1,
    ):
        self.engines, self.generator, self.config, self.pad, self.seed = engines, generator, config, pad, seed
        self.say, self.processes = say, processes
        self.how = config.generator_backward
        self.said: set[str] = set()
        self.cost: CellCost | None = None
        self.tokens = 0
        self.run: Pass | None = None
        learns = "generator" in engines.learning
        if learns and self.how in THINNED and remove_dropout(generator.lm):
            say(f"note: --generator_backward {self.how} trains the generator without its dropout")

    def forward(self, cells: CellList, batch: Batch, last: bool) -> torch.Tensor:
        """(C, A) leaf, float32 or wider; this rank reads its own share of the cells of a pool of the world."""
        self.cells, self.batch, self.last = cells, batch, last
        self.mine = list(range(len(cells)))
        if batch.shares:
            own = set(batch.shares[collectives.rank()].columns)
            self.mine = [c for c in self.mine if cells.passage_C[c] in own]
        at_once = self.fits(self.mine)
        self.chunks = self.equal_on_ranks([self.mine] if at_once else self.split(self.mine))
        run: Pass
        if at_once:
            run = OnePass(self.engines, "generator", self.lay_out(self.chunks[0]), last)
        else:
            run = TwoPass(self.engines, "generator", [partial(self.lay_out, c) for c in self.chunks], last)
        self.tokens += sum(self.size(chunk)[0] for chunk in self.chunks)
        logp_CA = run.outputs[0][0].new_zeros(len(cells), cells.target_length)
        for chunk, (found,) in zip(self.chunks, run.outputs, strict=True):
            logp_CA[chunk, : found.shape[1]] = found[: len(chunk)]
        run.outputs.clear()
        self.run = run
        if batch.shares:
            collectives.add_over_ranks(logp_CA)
        self.leaf_CA = logp_CA.requires_grad_()
        return self.leaf_CA

    def backward(self, place: Sequence[int] = (0,)) -> dict[str, float]:
        """From the leaf's gradient. place: numbers that name this micro-batch within the run.

        Returns what `posterior` and `sample` left out: `kept_cells` (a share) and, of the first, `dropped_mass`.
        """
        run, self.run = self.run, None
        grad_CA = self.leaf_CA.grad
        if run is None or grad_CA is None or "generator" not in self.engines.learning:
            return {}
        report: dict[str, float] = {}
        if self.how in THINNED:
            query_C = torch.tensor(self.cells.query_C, device=grad_CA.device)
            queries = len(self.batch.rows)
            own = 0 if self.batch.shares else collectives.rank()  # ranks of one batch draw alike, others apart
            if self.how == "posterior":
                keep_C, dropped = keep_heavy(grad_CA, query_C, queries, self.config.posterior_threshold)
                report["dropped_mass"] = dropped
            else:
                keep_C, factor_C = draw_one(grad_CA, query_C, queries, [self.seed, *place, own])
                grad_CA = grad_CA * factor_C[:, None].to(grad_CA.dtype)
            report["kept_cells"] = float(keep_C.float().mean())
            kept = keep_C.tolist()
            self.chunks = self.equal_on_ranks(self.split([c for c in self.mine if kept[c]]))
            again = [partial(self.lay_out, chunk) for chunk in self.chunks]
            run = TwoPass(self.engines, "generator", again, self.last, scored=False)

        def of_chunk(c: int) -> Gradients:
            return [self.chunk_gradient(grad_CA, self.chunks[c])]

        run.backward(of_chunk)
        return report

    def tokens_read(self) -> int:
        """Tokens that the generator has read since the last call; those of a second pass are not counted again."""
        count, self.tokens = self.tokens, 0
        return count

    def chunk_gradient(self, grad_CA: torch.Tensor, chunk: list[int]) -> torch.Tensor:
        if not chunk:  # the stand-in of a rank without work
            return grad_CA.new_zeros(1, 1)
        return grad_CA[chunk, : max(self.cells.target_lengths[c] for c in chunk)]

    def lay_out(self, chunk: list[int]) -> Inputs:
        """What the generator reads; for an empty chunk a stand-in, so that all ranks run as many forwards."""
        cells = self.cells.take(chunk) if chunk else stand_in()
        return (self.generator.lay_out(cells, self.pad).to(self.device()),)

    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def equal_on_ranks(self, chunks: list[list[int]]) -> list[list[int]]:
        """As many chunks as the rank with the most, and at least one."""
        most = int(collectives.all_max({"n": max(1, len(chunks))}, self.device())["n"])
        return chunks + [[] for _ in range(most - len(chunks))]

    def fits(self, mine: list[int]) -> bool:
        """Is this micro-batch scored in one pass? All ranks decide alike. Logits are kept where they fit too."""
        self.generator.keep_bytes = KEEP_BYTES
        if "generator" not in self.engines.learning or self.how not in ("auto", "one_pass"):
            return False
        if self.how == "one_pass":
            self.generator.keep_bytes = math.inf
            return True
        tokens, targets = self.size(mine)
        cost, budget = self.measured(), self.budget()
        needs = [cost.of(tokens, targets, keep) for keep in (math.inf, KEEP_BYTES)]
        over = {f"{n}": float(need > budget) for n, need in enumerate(needs)}
        worst = collectives.all_max(over | {"need": needs[0]}, self.device())
        kept, within = worst["0"] == 0, worst["1"] == 0
        if kept:
            self.generator.keep_bytes = math.inf
        need = worst["need"] if kept or not within else needs[1]
        way = "one pass" if within else "two passes"
        self.explain(way, f"{tokens:,} tokens of {len(mine)} cells need about {need / 1e9:.2g} GB", budget)
        return within

    def split(self, mine: list[int]) -> list[list[int]]:
        """The cells in chunks that fit the budget, those of one prefix together."""
        if self.config.micro_cells != "auto":
            return split_cells(self.cells, mine, int(self.config.micro_cells), 1 << 60, self.generator.shares_prefixes)
        tokens, targets = self.size(mine)
        budget = self.budget()
        most = self.measured().tokens_within(budget, targets / max(1, tokens))
        enough = min(most, ENOUGH_TOKENS[self.device().type])
        chunks = split_cells(self.cells, mine, len(mine), enough, self.generator.shares_prefixes)
        if self.how != "auto" and "generator" in self.engines.learning:
            need = self.measured().of(enough, int(enough * targets / max(1, tokens)))
            self.explain(self.how, f"chunks of up to {enough:,} tokens need about {need / 1e9:.2g} GB", budget)
        return chunks

    def size(self, mine: list[int]) -> tuple[int, int]:
        """Tokens that are read and tokens that are predicted."""
        cells = self.cells.take(mine) if mine else stand_in()
        prefixes = [len(p) for p in cells.prefixes]
        read = sum(prefixes) if self.generator.shares_prefixes else sum(prefixes[p] for p in cells.prefix_C)
        return read + sum(len(s) for s in cells.suffixes), sum(cells.target_lengths)

    def measured(self) -> CellCost:
        if self.cost is None:
            self.cost = measure_cost(self.generator)
            self.free = budget_bytes(self.config.memory_budget, self.device(), self.processes)
        return self.cost

    def budget(self) -> float:
        """Bytes for activations: the flag's, else what there was at the first step less the gradients to come."""
        gradients = 0 if self.config.memory_budget is not None else self.measured().gradients
        return max(self.free - gradients, 0.1 * self.free)

    def explain(self, way: str, need: str, budget: float) -> None:
        """Says what was chosen, once for every way; near the budget micro-batches alternate."""
        if way not in self.said:
            self.said.add(way)
            self.say(f"generator  {way}: {need}, the budget is {budget / 1e9:.2g} GB")


def split_cells(
    cells: CellList, chosen: Sequence[int], most_cells: int, most_tokens: int, shared: bool
) -> list[list[int]]:
    """`chosen` in chunks of at most so many cells and tokens (one cell at least), cells of one prefix side by side,
    long prefixes first. A prefix counts once in a chunk where it is shared."""
    order = sorted(chosen, key=lambda c: (-len(cells.prefixes[cells.prefix_C[c]]), cells.prefix_C[c]))
    chunks: list[list[int]] = []
    tokens, before = 0, -1
    for c in order:
        prefix, own = cells.prefix_C[c], len(cells.suffixes[c])
        size = len(cells.prefixes[prefix])
        added = own if shared and prefix == before else own + size
        if not chunks or len(chunks[-1]) >= most_cells or tokens + added > most_tokens:
            chunks.append([])
            tokens, added = 0, own + size
        chunks[-1].append(c)
        tokens += added
        before = prefix
    return chunks


def stand_in() -> CellList:
    """One cell of two tokens, whose gradient is zero."""
    token = np.zeros(1, np.int32)
    return list_cells([token], [token], [1])


def remove_dropout(lm: Any) -> bool:
    """Sets every dropout of the model to 0; was there any?

    The cells that are run again lie in other rows than when they were scored, so a dropout mask cannot be replayed,
    and weights of one mask with the gradient of another belong to no function.
    """
    found = False
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            found, module.p = found or module.p > 0, 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                found = found or value > 0
                setattr(module, name, 0.0)
    return found
