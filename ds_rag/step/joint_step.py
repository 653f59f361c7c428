"""One optimizer step of retriever and generator together: micro-batches in, both models updated.

Shape legend: B queries, N passages of the pool, K candidates, C cells, A target tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ds_rag.config import ModelConfig, ObjectiveConfig
from ds_rag.data.batch import Batch, CellList
from ds_rag.data.prompt import Prompt, make_prompt
from ds_rag.engines.engine_pair import Engines, StepResult
from ds_rag.engines.plain import plain_engines
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.runtime import collectives, fault_injection
from ds_rag.runtime.errors import UserError
from ds_rag.step.cached_scoring import CachedCells, CachedScoring
from ds_rag.step.candidates import choose_candidates
from ds_rag.step.generator_side import ScoredCells, Scoring, StepOptions
from ds_rag.step.non_finite import Seen, Sign, any_loss_is_bad, first_not_finite
from ds_rag.step.objectives import Micro, Objective, make_objective
from ds_rag.step.retriever_side import ConstantPassages, Embedding
from ds_rag.step.without_passage import WithoutPassage


@dataclass
class StepOutput:
    """One micro-batch's part of the step's values: `loss` and `sums` add up over micro-batches and ranks."""

    loss: float
    sums: dict[str, float]
    sign: Sign | None = None  # where the first value that is not finite was, see non_finite.py


class StepReport(NamedTuple):
    """The result of a step.

    outputs: one for each micro-batch of this rank. totals: the counts that means are taken over, summed over the
    micro-batches of all ranks, and `tokens`, those that this rank has read. result: what the engines did with the
    gradients.
    """

    outputs: list[StepOutput]
    totals: dict[str, float]
    result: StepResult

    @property
    def loss(self) -> float:
        """This rank's part of the step's mean loss, in nats per unit of the objective (`Objective.unit`)."""
        return sum(output.loss for output in self.outputs)


class JointStep:
    """Trains a retriever and a generator on one loss: `log sum_z p(z|x) p(y|x,z)`, or another objective.

    `from_models` builds one from models and names; the constructor takes engines and an objective that exist already.
    `step` contains all of the mathematics.

    Example:
        >>> rows = [{"query": "where is ann ?", "answer": "here", "passages": ["ann is here"]}]
        >>> rows += [{"query": "where is bob ?", "answer": "there", "passages": ["bob is there"]}]
        >>> joint = ds_rag.JointStep.from_models(retriever, generator, objective="rag_sequence")
        >>> loader = ds_rag.load_rows(joint, rows, ds_rag.BatchOptions(batch=2))
        >>> losses = [joint.step(loader.micro_batches(n), number=n).loss for n in range(3)]  # nats a query
        >>> losses[2] < losses[0]
        True
    """

    def __init__(
        self, engines: Engines, objective: Objective, prompt: Prompt | None = None, options: StepOptions | None = None
    ):
        options = options or StepOptions()
        self.engines, self.objective, self.prompt, self.options = engines, objective, prompt, options
        embedding = Embedding(engines, options.scoring.retriever_chunk)
        vectors = options.vectors
        self.embedding = embedding if vectors is None else ConstantPassages(embedding, vectors)
        self.scoring: Scoring | CachedScoring | None = None
        self.without: WithoutPassage | None = None
        if self.generator is not None and objective.needs_generator:
            pad = getattr(self.generator.tokenizer, "pad_token_id", 0)
            scoring = Scoring(engines, self.generator, pad, options)
            self.scoring = scoring if options.scores is None else CachedScoring(scoring, options.scores)
            if prompt is not None and objective.reads_without_passage:
                self.without = WithoutPassage(scoring, prompt, options.scores)

    @classmethod
    def from_models(
        cls,
        retriever: Retriever,
        generator: Generator | None = None,
        objective: str | ObjectiveConfig | Objective = "rag_sequence",
        engines: Engines | None = None,
        prompt: Prompt | None = None,
        options: StepOptions | None = None,
    ) -> JointStep:
        """A step over models in memory.

        Args:
            retriever, generator: the models. The generator may be None for an objective without one (`infonce`).
            objective: a name, an `ObjectiveConfig`, or an `Objective`, for example one that you wrote.
            engines: engines around these models, for example of DeepSpeed. Default: a `PlainEngine` with the settings
                of `options.optim` for each model that the objective trains and that is not frozen; prefixes are then
                shared if the generator supports it.
            prompt: how passage, query and answer become one sequence. Default: the default template.

        Raises:
            UserError: an unknown objective, settings that contradict each other, an objective that needs a generator
                and gets none, or no model that is trained.
        """
        options = options or StepOptions()
        if isinstance(objective, str):
            objective = ObjectiveConfig(objective=objective)
        if isinstance(objective, ObjectiveConfig):
            objective = make_objective(objective, collectives.world())
        check_models(objective, generator)
        if engines is None:
            if generator is not None and not objective.trains_generator:
                generator.requires_grad_(False)
            if generator is not None and options.scoring.share_prefixes and (why := share_prefixes(generator)):
                options.say(f"note: this generator cannot share prefixes, so it reads plain sequences: {why}")
            engines = plain_engines(retriever, generator, options.optim)
        check_trained(objective, engines)
        if prompt is None and generator is not None and objective.needs_generator:
            prompt = make_prompt(ModelConfig(), generator.tokenizer, generator.max_length)
        return cls(engines, objective, prompt, options)

    @property
    def retriever(self) -> Retriever:
        found = self.engines.modules["retriever"]
        assert isinstance(found, Retriever)
        return found

    @property
    def generator(self) -> Generator | None:
        found = self.engines.modules.get("generator")
        assert found is None or isinstance(found, Generator)
        return found

    @property
    def device(self) -> torch.device:
        return self.retriever.log_temperature.device

    def cells_ahead(self, batch: Batch) -> CellList | None:
        """The batch's cells, if the objective can list them before scores exist; else None."""
        return None if self.prompt is None else self.objective.cells_ahead(batch, self.prompt)

    def step(self, batches: Sequence[Batch], lr_factor: float = 1.0, number: int = 0) -> StepReport:
        """Runs every micro-batch forward and backward through both engines, then the joint step (skip, clip, update).

        batches: this rank's micro-batches, the same number on every rank. lr_factor: multiplies the peak learning
        rates. number: the step's number in the run; the random draws of `sample` depend on it.
        """
        engines, objective = self.engines, self.objective
        engines.train()
        batches = [batch.to(self.device) for batch in batches]
        ahead = [self.cells_ahead(batch) for batch in batches]
        totals = collectives.all_sum(objective.counts(batches, ahead), self.device)  # means are over the full step
        outputs, tokens = [], 0
        for m, batch in enumerate(batches):
            fault_injection.point("micro_batch")
            last = m == len(batches) - 1
            embedded = self.embedding.forward(batch, last)  # its outputs are leaves: no graph spans the two models
            scores_BN = embedded.scores_BN
            micro = Micro(batch, scores_BN, choose_candidates(scores_BN, batch, objective.config.candidates))
            scored: ScoredCells | CachedCells | None = None
            if self.scoring is not None and self.prompt is not None:
                micro.cells = ahead[m] or objective.cells(batch, micro.candidates_BK, self.prompt)
                scored = self.scoring.forward(micro.cells, batch, last)
                micro.logp_CA = scored.outputs
                micro.without_B = None if self.without is None else self.without.score(batch)
            found = objective.differentiate(micro, totals)
            d_embedded = torch.autograd.grad(scores_BN, embedded.outputs, found.d_scores_BN)
            embedded.backward(d_embedded)
            if scored is not None and found.d_logp_CA is not None:
                found.sums |= scored.backward(found.d_logp_CA, (number, m))
                tokens += scored.tokens
            tokens += embedded.tokens
            logp = None if scored is None else scored.on_this_rank
            seen = Seen(embedded.on_this_rank, logp, found.loss, d_embedded[: embedded.sides], found.d_logp_CA)
            sign = first_not_finite(m, seen)
            found.sums["embedding_spread"] = embedding_spread(embedded.watched)
            if self.retriever.reads_words:
                found.sums["lexical_weight"] = float(embedded.outputs[-1].detach())
            outputs.append(StepOutput(found.loss, found.sums, sign))
        bad = any_loss_is_bad([o.sign for o in outputs], self.device)
        return StepReport(outputs, totals | {"tokens": float(tokens)}, engines.step(lr_factor, skip=bad))


def embedding_spread(x_ND: torch.Tensor) -> float:
    """Standard deviation of embeddings (N, D), such as those of the pool's passages, averaged over dimensions; 0 for
    one embedding."""
    return float(x_ND.detach().std(0).mean()) if len(x_ND) > 1 else 0.0


def check_models(objective: Objective, generator: Generator | None) -> None:
    """Raises UserError if the objective needs a generator and there is none."""
    if objective.needs_generator and generator is None:
        raise UserError(
            f"the objective {objective.name} reads passages with a generator", found="none", expected="a Generator"
        )


def check_trained(objective: Objective, engines: Engines) -> None:
    """Raises UserError if no model has an engine."""
    if not engines.learning:
        raise UserError(
            f"no model is trained under {objective.name}",
            found="modules without trainable parameters",
            expected="an engine for at least one of them",
        )
