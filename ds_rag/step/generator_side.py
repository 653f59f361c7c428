"""The generator's side of a step: the log-probabilities of every cell, and the backward pass from their gradients.

The values of `--generator_backward`:

    one_pass   one forward whose graph is kept: fastest, needs memory for all cells
    exact      cells are scored chunk by chunk without a graph, then each chunk has a forward and a backward: needs
               memory for one chunk, does a third more work, gives the same gradient
    auto       one_pass if its predicted memory fits the budget, else exact
    posterior  as exact, but cells of small weight have no backward; the dropped mass is reported
    sample     as exact, but only one cell of each query has a backward, drawn at random by weight: an
               unbiased estimate of the gradient

Shape legend: C cells, A tokens of the longest target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ds_rag.config import OptimConfig, ScoringConfig
from ds_rag.data.batch import Batch, CellList
from ds_rag.engines.engine_pair import Engines
from ds_rag.index.passage_vectors import PassageVectors
from ds_rag.models.generator import Generator
from ds_rag.models.score_store import ScoreStore
from ds_rag.models.token_logprobs import KEEP_BYTES
from ds_rag.runtime import collectives
from ds_rag.step.activation_memory import CellCost, budget_bytes, measure_cost
from ds_rag.step.cell_chunks import split_cells, stand_in
from ds_rag.step.cell_selection import draw_one, keep_heavy
from ds_rag.step.two_pass import Gradients, Inputs, OnePass, Pass, TwoPass

THINNED = ("posterior", "sample")
# Larger chunks only cost memory: with this many tokens the matrix products already run at full speed.
ENOUGH_TOKENS = {"cpu": 2048, "cuda": 16384}


def silent(text: str) -> None:
    """Ignores the text."""


@dataclass
class StepOptions:
    """How a step is computed.

    scoring: how the forward and backward passes of both models are split. optim: learning rates, AdamW's settings and
    clipping, used only where no engines are given. seed: for the random draws of `sample`. say: called with notes for
    the user. processes: ranks on this host, among which its memory is divided. scores: a store of what a generator that
    is not trained has already made of cells, which are then not read again; see `CachedScoring`. vectors: those of all
    passages, where they are constants, which are then not embedded; see `ConstantPassages`.

    Example:
        >>> from ds_rag.config import OptimConfig, ScoringConfig
        >>> scoring = ScoringConfig(generator_backward="exact")  # needs memory for one chunk
        >>> options = ds_rag.StepOptions(scoring=scoring, optim=OptimConfig(learning_rate=1e-4))
        >>> joint = ds_rag.JointStep.from_models(retriever, generator, options=options)
        >>> sorted(joint.engines.learning)
        ['generator', 'retriever']
    """

    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    say: Callable[[str], None] = silent
    processes: int = 1
    scores: ScoreStore | None = None
    vectors: PassageVectors | None = None


class Scoring:
    """Calls the generator's engine, in the way that `--generator_backward` chose.

    Nothing of a micro-batch is kept between calls, only the measured memory cost of the model and the notes that have
    been printed.
    """

    def __init__(self, engines: Engines, generator: Generator, pad: int, options: StepOptions | None = None):
        self.engines, self.generator, self.pad = engines, generator, pad
        self.options = options or StepOptions()
        self.config, self.how = self.options.scoring, self.options.scoring.generator_backward
        self.said: set[str] = set()
        self.cost: CellCost | None = None
        if self.is_trained and self.how in THINNED and remove_dropout(generator.lm):
            self.options.say(f"note: --generator_backward {self.how} trains the generator without its dropout")

    @property
    def is_trained(self) -> bool:
        return "generator" in self.engines.learning

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def forward(self, cells: CellList, batch: Batch, last: bool) -> ScoredCells:
        """Log-probabilities of all cells. last: this is the last micro-batch of the optimizer step.

        With `--pool world` this rank reads only the cells of its own passages; the others come from the other ranks.
        """
        mine = own_cells(cells, batch)
        at_once = self.fits(cells, mine)
        chunks = self.equal_on_ranks([mine] if at_once else self.split(cells, mine))
        run: Pass
        if at_once:
            run = OnePass(self.engines, "generator", self.lay_out(cells, chunks[0]), last)
        else:
            run = TwoPass(self.engines, "generator", [partial(self.lay_out, cells, c) for c in chunks], last)
        return ScoredCells(self, RankCells(cells, batch, last, mine), chunks, run)

    def lay_out(self, cells: CellList, chunk: list[int]) -> Inputs:
        """The generator's input for one chunk; for an empty chunk a dummy cell, because all ranks must run the same
        number of forwards."""
        chosen = cells.take(chunk) if chunk else stand_in()
        return (self.generator.lay_out(chosen, self.pad).to(self.device),)

    def equal_on_ranks(self, chunks: list[list[int]]) -> list[list[int]]:
        """Appends empty chunks, up to the number of the rank that has the most, and at least one."""
        most = int(collectives.all_max({"n": max(1, len(chunks))}, self.device)["n"])
        return chunks + [[] for _ in range(most - len(chunks))]

    def fits(self, cells: CellList, mine: list[int]) -> bool:
        """Can this micro-batch be scored in one pass? The same on all ranks. Also decides if logits are kept."""
        self.generator.keep_bytes = KEEP_BYTES
        if not self.is_trained or self.how not in ("auto", "one_pass"):
            return False
        if self.how == "one_pass":
            self.generator.keep_bytes = math.inf
            return True
        tokens, targets = self.size(cells, mine)
        cost, budget = self.measured(), self.budget()
        needs = [cost.of(tokens, targets, keep) for keep in (math.inf, KEEP_BYTES)]
        over = {f"{n}": float(need > budget) for n, need in enumerate(needs)}
        worst = collectives.all_max(over | {"need": needs[0]}, self.device)
        kept, within = worst["0"] == 0, worst["1"] == 0
        if kept:
            self.generator.keep_bytes = math.inf
        need = worst["need"] if kept or not within else needs[1]
        way = "one pass" if within else "two passes"
        self.explain(way, f"{tokens:,} tokens of {len(mine)} cells need about {need / 1e9:.2g} GB", budget)
        return within

    def split(self, cells: CellList, mine: list[int]) -> list[list[int]]:
        """The cells in chunks that fit the memory budget, cells with the same prefix side by side."""
        shared = self.generator.shares_prefixes
        if self.config.micro_cells != "auto":
            return split_cells(cells, mine, int(self.config.micro_cells), 1 << 60, shared)
        tokens, targets = self.size(cells, mine)
        budget = self.budget()
        most = self.measured().tokens_within(budget, targets / max(1, tokens))
        enough = min(most, ENOUGH_TOKENS[self.device.type])
        if self.how != "auto" and self.is_trained:
            need = self.measured().of(enough, int(enough * targets / max(1, tokens)))
            self.explain(self.how, f"chunks of up to {enough:,} tokens need about {need / 1e9:.2g} GB", budget)
        return split_cells(cells, mine, len(mine), enough, shared)

    def size(self, cells: CellList, mine: list[int]) -> tuple[int, int]:
        """(tokens that are read, tokens that are predicted) in these cells."""
        chosen = cells.take(mine) if mine else stand_in()
        prefixes = [len(p) for p in chosen.prefixes]
        read = sum(prefixes) if self.generator.shares_prefixes else sum(prefixes[p] for p in chosen.prefix_C)
        return read + sum(len(s) for s in chosen.suffixes), sum(chosen.target_lengths)

    def measured(self) -> CellCost:
        """The model's memory cost, measured at the first call."""
        if self.cost is None:
            self.cost = measure_cost(self.generator)
            self.free = budget_bytes(self.config.memory_budget, self.device, self.options.processes)
        return self.cost

    def budget(self) -> float:
        """Bytes for activations: `--memory_budget`, else the memory that was free at the first step, minus the
        gradients that will be allocated."""
        gradients = 0 if self.config.memory_budget is not None else self.measured().gradients
        return max(self.free - gradients, 0.1 * self.free)

    def explain(self, way: str, need: str, budget: float) -> None:
        """Tells the user what was chosen, once for each way: near the budget micro-batches alternate between two."""
        if way not in self.said:
            self.said.add(way)
            self.options.say(f"generator  {way}: {need}, the budget is {budget / 1e9:.2g} GB")


@dataclass(frozen=True)
class RankCells:
    """The input of one forward. mine: indices into `cells` of those that this rank reads."""

    cells: CellList
    batch: Batch
    last: bool
    mine: list[int]


class ScoredCells:
    """The handle of one forward: its `outputs`, and `backward`, which may be called once with their gradient.

    outputs: (C, A) token log-probabilities in nats, detached, float32 or float64; 0 after the end of a cell's target.
    tokens: the number that this rank has read; a second pass over them does not count. chunks: indices of the cells,
    chunk by chunk, as they were read last.
    """

    def __init__(self, scoring: Scoring, read: RankCells, chunks: list[list[int]], run: Pass):
        self.scoring, self.read, self.chunks = scoring, read, chunks
        self.run: Pass | None = run
        self.tokens = sum(scoring.size(read.cells, chunk)[0] for chunk in chunks)
        logp_CA = run.outputs[0][0].new_zeros(len(read.cells), read.cells.target_length)
        for chunk, (found,) in zip(chunks, run.outputs, strict=True):
            logp_CA[chunk, : found.shape[1]] = found[: len(chunk)]
        run.outputs.clear()
        if read.batch.shares:
            collectives.add_over_ranks(logp_CA)
        self.outputs = logp_CA

    @property
    def on_this_rank(self) -> torch.Tensor:
        """The log-probabilities of the cells that this rank has read."""
        return self.outputs[self.read.mine]

    def backward(self, grad_CA: torch.Tensor, place: Sequence[int] = (0,)) -> dict[str, float]:
        """Sends a gradient through the generator.

        grad_CA: the gradient with respect to `outputs`. place: integers that identify this micro-batch in the run;
        they seed the draws of `sample`. Returns the statistics of `posterior` and `sample`: `kept_cells`, the fraction
        of cells that had a backward, and for `posterior` also `dropped_mass`; empty for the other ways.
        """
        run, self.run = self.run, None
        assert run is not None, "a forward has one backward"
        report: dict[str, float] = {}
        if not self.scoring.is_trained:
            return report
        if self.scoring.how in THINNED:
            report, grad_CA = self.thin(grad_CA, place)
            again = [partial(self.scoring.lay_out, self.read.cells, chunk) for chunk in self.chunks]
            run = TwoPass(self.scoring.engines, "generator", again, self.read.last, scored=False)

        def of_chunk(c: int) -> Gradients:
            return [self.chunk_gradient(grad_CA, self.chunks[c])]

        run.backward(of_chunk)
        return report

    def thin(self, grad_CA: torch.Tensor, place: Sequence[int]) -> tuple[dict[str, float], torch.Tensor]:
        """Chooses the cells that get a backward and sets `chunks` to them. Returns the statistics, and the gradient,
        which `sample` has multiplied by its factors."""
        scoring, cells, batch = self.scoring, self.read.cells, self.read.batch
        query_C = torch.tensor(cells.query_C, device=grad_CA.device)
        queries = len(batch.rows)
        stream = 0 if batch.shares else collectives.rank()  # ranks with the same batch make the same draws
        report: dict[str, float] = {}
        if scoring.how == "posterior":
            keep_C, report["dropped_mass"] = keep_heavy(grad_CA, query_C, queries, scoring.config.posterior_threshold)
        else:
            keep_C, factor_C = draw_one(grad_CA, query_C, queries, [scoring.options.seed, *place, stream])
            grad_CA = grad_CA * factor_C[:, None].to(grad_CA.dtype)
        report["kept_cells"] = float(keep_C.float().mean())
        kept = keep_C.tolist()
        self.chunks = scoring.equal_on_ranks(scoring.split(cells, [c for c in self.read.mine if kept[c]]))
        return report, grad_CA

    def chunk_gradient(self, grad_CA: torch.Tensor, chunk: list[int]) -> torch.Tensor:
        if not chunk:  # the dummy cell of a rank without work
            return grad_CA.new_zeros(1, 1)
        return grad_CA[chunk, : max(self.read.cells.target_lengths[c] for c in chunk)]


def own_cells(cells: CellList, batch: Batch) -> list[int]:
    """Indices of the cells that this rank reads: with `--pool world` those of its own passages, else all."""
    if not batch.shares:
        return list(range(len(cells)))
    columns = set(batch.shares[collectives.rank()].columns)
    return [c for c in range(len(cells)) if cells.passage_C[c] in columns]


def remove_dropout(lm: Any) -> bool:
    """Sets every dropout probability of the model to 0. Returns whether one was above 0.

    The cells that are run again are in other rows of the batch than when they were scored, so their dropout masks
    cannot be replayed; weights from one mask with gradients from another would be the gradient of no function.
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
