"""From flags to terms, and from terms to the gradients on scores and log-probabilities. Float64, random inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import direct_loss, small_parts

from ds_rag.config import ObjectiveConfig
from ds_rag.config.objectives import OBJECTIVES
from ds_rag.data.batch import Batch, CellList
from ds_rag.run.assemble import Parts
from ds_rag.runtime.errors import UserError
from ds_rag.step.candidates import choose_candidates
from ds_rag.step.objectives import Micro, make_objective

# Every objective, and every choice that changes its terms.
VARIANTS: list[dict[str, Any]] = [{"objective": name} for name in OBJECTIVES]
VARIANTS += [{"objective": name, "contrastive_weight": 0.7} for name in OBJECTIVES]
VARIANTS += [{"objective": name, "contrastive_weight": 0.7, "contrastive_symmetric": True} for name in OBJECTIVES]
VARIANTS += [{"objective": name, "prior": "pool"} for name in ("rag_sequence", "rag_token", "emdr2", "pdist")]
VARIANTS += [{"objective": name, "answer_logprob": "mean"} for name in ("rag_sequence", "emdr2", "pdist")]
TEMPER: dict[str, Any] = {"answer_exponent": 0.5, "answer_weight": 1.5}
VARIANTS += [{"objective": "rag_sequence"} | TEMPER, {"objective": "rag_token", "answer_weight": 1.5}]
VARIANTS += [{"objective": "pdist", "reader_loss": "posterior"} | TEMPER]
GATES: list[dict[str, Any]] = [{"gate_gain": 0.2}, {"gate_margin": 0.1}, {"gate_gain": 0.2, "gate_margin": 0.1}]
VARIANTS += [{"objective": "rag_sequence"} | gate for gate in GATES]
VARIANTS += [{"objective": name, "contrastive_weight": 0.7} | GATES[2] for name in ("rag_token", "emdr2", "pdist")]
VARIANTS += [{"objective": "emdr2", "reader_loss": kind} for kind in ("posterior", "none")]
VARIANTS += [{"objective": "positive_only", "lm_tokens": "answer"}]
VARIANTS += [{"objective": "pdist", "target_temperature": 2.0}, {"objective": "rag_sequence", "candidates": "all"}]


def label(variant: dict[str, Any]) -> str:
    return "-".join(str(v) for v in variant.values())


def sequence(cells: CellList, c: int) -> np.ndarray:
    return np.concatenate([cells.prefixes[cells.prefix_C[c]], cells.suffixes[c]])


def whole_positive_sequences(parts: Parts, batch: Batch) -> list[np.ndarray]:
    """Prompt and answer of each row with its first positive passage."""
    found = []
    for query, answer, positive in zip(batch.query_ids, batch.answer_ids, batch.positive_BN, strict=True):
        passage = batch.passage_ids[int(positive.nonzero()[0, 0])]
        found.append(np.concatenate([parts.prompt.context(passage, query, len(answer)), answer]))
    return found


class Made:
    """One micro-batch with random scores and token log-probabilities, both float64 leaves."""

    def __init__(self, parts: Parts, batch: Batch, seed: int):
        random = torch.Generator().manual_seed(seed)
        self.batch = batch
        N = batch.passages.ids_BT.shape[0]
        B = len(batch.rows)
        self.scores_BN = torch.randn(B, N, generator=random, dtype=torch.float64).mul(2).requires_grad_()
        self.candidates_BK = choose_candidates(self.scores_BN, batch, parts.objective.config.candidates)
        self.without_B = torch.full((B,), -1.5, dtype=torch.float64)  # the mean of what follows
        self.cells: CellList | None = None
        self.logp_CA: torch.Tensor | None = None
        if parts.prompt is not None:
            self.cells = parts.objective.cells(batch, self.candidates_BK, parts.prompt)
            shape = len(self.cells.target_lengths), self.cells.target_length
            logp = -3 * torch.rand(shape, generator=random, dtype=torch.float64)
            past_the_end = torch.arange(shape[1]) >= torch.tensor(self.cells.target_lengths)[:, None]
            self.logp_CA = logp.masked_fill(past_the_end, torch.nan).requires_grad_()

    @property
    def seen(self) -> Micro:
        return Micro(self.batch, self.scores_BN, self.candidates_BK, self.cells, self.logp_CA, self.without_B)

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [x for x in (self.scores_BN, self.logp_CA) if x is not None]


def make(variant: dict[str, Any], accumulation: int = 2) -> tuple[Parts, list[Made], dict[str, float]]:
    parts = small_parts(accumulation, **variant)
    batches = parts.loader.micro_batches(0)
    micros = [Made(parts, batch, seed) for seed, batch in enumerate(batches)]
    return parts, micros, count(parts, batches)


def count(parts: Parts, batches: list[Batch]) -> dict[str, float]:
    return parts.objective.counts(batches, [parts.joint.cells_ahead(batch) for batch in batches])


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_terms_and_backward_against_direct_calls(variant):
    """Over two micro-batches: the loss, its gradients by `backward`, and the logged shares."""
    parts, micros, totals = make(variant)
    for micro in micros:
        expected = direct_loss(parts.objective, micro.seen, totals)
        wanted = torch.autograd.grad(expected, micro.leaves, allow_unused=True)
        terms = parts.objective.values(micro.seen, totals)
        torch.testing.assert_close(sum(terms.values()), expected)
        output = parts.objective.differentiate(micro.seen, totals)
        assert output.loss == pytest.approx(float(expected.detach()), rel=1e-12)
        found = [output.d_scores_BN] + ([output.d_logp_CA] if output.d_logp_CA is not None else [])
        for leaf, ours, gradient in zip(micro.leaves, found, wanted, strict=True):
            torch.testing.assert_close(ours, torch.zeros_like(leaf) if gradient is None else gradient)
            assert ours.isfinite().all()
        shares = [value for name, value in output.sums.items() if name.startswith("grad_share/")]
        assert sum(shares) == pytest.approx(1.0) and min(shares) >= 0.0
        assert {f"grad_share/{name}" for name in terms} == {n for n in output.sums if n.startswith("grad_share/")}


def test_queries_that_do_not_pass_the_gate_teach_nothing_and_are_counted():
    parts, micros, totals = make({"objective": "rag_sequence"} | GATES[2])
    open_parts, same, _ = make({"objective": "rag_sequence"})
    counts = []
    for micro, other in zip(micros, same, strict=True):
        found, without = (p.objective.differentiate(m.seen, totals) for p, m in ((parts, micro), (open_parts, other)))
        taught_B = found.d_scores_BN.abs().sum(1) > 0
        torch.testing.assert_close(found.d_scores_BN, without.d_scores_BN * taught_B[:, None])
        assert (without.d_scores_BN.abs().sum(1) > 0).all() and "gated_queries" not in without.sums
        counts.append(int(found.sums["gated_queries"]))
        assert counts[-1] == int((~taught_B).sum())
    assert 0 < sum(counts) < totals["queries"], "the case shows nothing"


@pytest.mark.parametrize("way", ["sum", "mean"])
def test_answer_logprob_is_an_exponent(way):
    """`sum` is exponent 0 and `mean` exponent 1: the same losses and gradients, and no other exponent's."""
    named, given, between = (
        make({"objective": "rag_sequence"} | flags)
        for flags in ({"answer_logprob": way}, {"answer_exponent": float(way == "mean")}, {"answer_exponent": 0.5})
    )
    for a, b, c in zip(named[1], given[1], between[1], strict=True):
        found = [
            p.objective.differentiate(m.seen, totals)
            for (p, _, totals), m in zip((named, given, between), (a, b, c), strict=True)
        ]
        assert found[0].loss == found[1].loss != found[2].loss
        assert found[0].sums["posterior_entropy"] == found[1].sums["posterior_entropy"]
        for name in ("d_scores_BN", "d_logp_CA"):
            assert torch.equal(getattr(found[0], name), getattr(found[1], name))
            assert not torch.allclose(getattr(found[0], name), getattr(found[2], name))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_means_are_over_the_whole_step(name):
    """The terms of two micro-batches add up to the loss over their joint counts, which is not the mean of both."""
    parts, micros, totals = make({"objective": name})
    own = [count(parts, [micro.batch]) for micro in micros]
    assert totals == {key: own[0][key] + own[1][key] for key in totals}
    terms = [parts.objective.values(micro.seen, totals) for micro in micros]
    alone = [parts.objective.values(m.seen, c) for m, c in zip(micros, own, strict=True)]
    units = {"lm": "all_tokens", "doc_prior": "all_tokens", "infonce": "pairs", "reader": "queries"}
    for term in terms[0]:
        key = units.get(term, parts.objective.unit)
        weights = [c[key] / totals[key] for c in own]
        mean = sum(w * float(a[term].detach()) for w, a in zip(weights, alone, strict=True))
        assert float((terms[0][term] + terms[1][term]).detach()) == pytest.approx(mean, rel=1e-12)


def test_on_more_ranks_a_term_is_larger_by_the_world_and_the_reported_loss_is_not():
    parts, micros, totals = make({"objective": "rag_sequence"}, accumulation=1)
    two = make_objective(parts.objective.config, world=2)
    one_term = parts.objective.values(micros[0].seen, totals)["rag_sequence"]
    torch.testing.assert_close(two.values(micros[0].seen, totals)["rag_sequence"], 2 * one_term)
    one, both = (objective.differentiate(micros[0].seen, totals) for objective in (parts.objective, two))
    assert both.loss == pytest.approx(one.loss)


def test_counts_by_hand():
    parts = small_parts(objective="positive_only")
    batch = parts.loader.collate([0, 1])  # row 0 has two positives
    counts = count(parts, [batch])
    assert counts["queries"] == 2 and counts["pairs"] == 3
    assert counts["answer_tokens"] == sum(len(a) for a in batch.answer_ids)
    sequences = whole_positive_sequences(parts, batch)
    assert counts["all_tokens"] == sum(len(s) for s in sequences) - 2  # the first token is not predicted
    answers = small_parts(objective="positive_only", lm_tokens="answer")
    assert count(answers, [batch])["all_tokens"] == counts["answer_tokens"]
    assert count(small_parts(objective="rag_sequence"), [batch])["all_tokens"] == 0


def test_select_takes_positives_then_own_then_the_best_of_the_pool():
    parts = small_parts(batch=4)
    batch = parts.loader.collate([0, 1, 2, 11])
    B, N = batch.own_BN.shape
    scores_BN = 30 * torch.randn(B, N, generator=torch.Generator().manual_seed(3))

    def ordered(mask_N: torch.Tensor, row: int) -> list[int]:
        found = mask_N.nonzero()[:, 0].tolist()
        return sorted(found, key=lambda n: -float(scores_BN[row, n]))

    for K in (1, 2, 4, 7, N):
        chosen = choose_candidates(scores_BN, batch, str(K))
        assert chosen.shape == (B, K)
        for row in range(B):
            positive, own = batch.positive_BN[row], batch.own_BN[row]
            order = ordered(positive, row) + ordered(own & ~positive, row) + ordered(~own, row)
            assert chosen[row].tolist() == order[:K]


def test_select_all_is_the_whole_pool_and_too_many_are_cut_to_it():
    parts = small_parts()
    batch = parts.loader.collate([0, 1, 2])
    scores_BN = torch.randn(batch.own_BN.shape)
    for candidates in ("all", "1000"):
        chosen = choose_candidates(scores_BN, batch, candidates)
        assert torch.equal(chosen.sort(1).values, torch.arange(scores_BN.shape[1]).expand_as(chosen))


def test_cells_are_the_prompt_with_each_candidate_and_the_answer():
    parts = small_parts()
    batch = parts.loader.micro_batches(0)[0]
    candidates_BK = choose_candidates(torch.randn(batch.own_BN.shape), batch, "4")
    cells = parts.objective.cells(batch, candidates_BK, parts.prompt)
    B, K = candidates_BK.shape
    for b in range(B):
        for k in range(K):
            row = sequence(cells, b * K + k)
            answer = batch.answer_ids[b]
            passage = batch.passage_ids[candidates_BK[b, k]]
            context = parts.prompt.context(passage, batch.query_ids[b], len(answer))
            assert np.array_equal(row, np.concatenate([context, answer]))
            assert cells.target_lengths[b * K + k] == len(answer)


def test_positive_only_reads_one_cell_a_query_and_predicts_its_prompt_too():
    parts = small_parts(objective="positive_only")
    batch = parts.loader.collate([0, 5])
    cells = parts.objective.cells(batch, torch.zeros(2, 4, dtype=torch.int64), parts.prompt)
    for b, whole in enumerate(whole_positive_sequences(parts, batch)):
        assert np.array_equal(sequence(cells, b), whole)
        assert cells.target_lengths[b] == len(whole) - 1


def test_the_pool_prior_exceeds_the_whole_marginal_by_the_missing_posterior_mass():
    """At equal log-probabilities in every cell the posterior is the prior, so the mass is known."""
    variant = {"objective": "rag_sequence", "prior": "pool", "candidates": "2"}
    parts, micros, totals = make(variant, accumulation=1)
    micro = micros[0]
    flat = torch.zeros_like(micro.logp_CA)
    loss = parts.objective.values(replace(micro.seen, logp_CA=flat), totals)
    mass_B = micro.scores_BN.softmax(1).gather(1, micro.candidates_BK).sum(1)
    torch.testing.assert_close(loss["rag_sequence"], -mass_B.log().mean())
    assert float(mass_B.max()) < 0.99


def test_the_pool_prior_pushes_unscored_passages_too():
    for prior, moved in (("pool", True), ("candidates", False)):
        parts, micros, totals = make({"objective": "rag_sequence", "prior": prior, "candidates": "2"}, accumulation=1)
        gradient = parts.objective.differentiate(micros[0].seen, totals).d_scores_BN
        scored = torch.zeros_like(micros[0].scores_BN, dtype=torch.bool).scatter(1, micros[0].candidates_BK, True)
        outside = gradient[~scored]
        assert bool((outside > 0).all()) == moved and bool((outside == 0).all()) != moved


def test_entropies_are_those_of_prior_and_posterior():
    parts, micros, totals = make({"objective": "rag_sequence"}, accumulation=1)
    micro = micros[0]
    output = parts.objective.differentiate(micro.seen, totals)
    l_BK = micro.scores_BN.detach().gather(1, micro.candidates_BK).log_softmax(1)
    B, K = l_BK.shape
    G_BK = micro.logp_CA.detach().view(B, K, -1).where(micro.batch.answer_mask_BT[:, None], 0.0).sum(-1)
    for name, log_BK in (("prior_entropy", l_BK), ("posterior_entropy", (l_BK + G_BK).log_softmax(1))):
        assert output.sums[name] == pytest.approx(float(-(log_BK.exp() * log_BK).sum()))


def test_which_models_an_objective_moves():
    learns = {name: make_objective(ObjectiveConfig(objective=name)).trains_generator for name in OBJECTIVES}
    assert {name for name, does in learns.items() if not does} == {"infonce"}
    without = ObjectiveConfig(objective="emdr2", reader_loss="none")
    objective = make_objective(without)
    assert not objective.trains_generator and objective.needs_generator
    assert not make_objective(ObjectiveConfig(objective="infonce")).needs_generator


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'rag_sequence'"):
        make_objective(ObjectiveConfig(objective="rag-sequence"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"objective": "rag_token", "answer_logprob": "mean"}, "--answer_logprob"),
        ({"objective": "rag_token", "answer_exponent": 0.5}, "--answer_exponent 0.5"),
        ({"objective": "replug_lsr", "prior": "pool"}, "--prior"),
    ],
)
def test_contradictions_are_errors_before_any_work(flags, says):
    with pytest.raises(UserError, match=says):
        make_objective(ObjectiveConfig(**flags))


@pytest.mark.parametrize("name", ["rag_sequence", "positive_only"])
def test_a_step_cuts_passages_so_that_the_answers_fit(name):
    """The whole cell keeps to the model's length, answer and all, whichever answer is the longest."""
    parts = small_parts(objective=name, lm_tokens="answer")
    batch = parts.loader.micro_batches(0)[0]
    candidates_BK = torch.arange(len(batch.passage_ids)).expand(len(batch.rows), -1)

    def lengths() -> list[int]:
        cells = parts.objective.cells(batch, candidates_BK, parts.prompt)
        for c, query in enumerate(cells.query_C):
            answer = batch.answer_ids[query]
            assert cells.target_lengths[c] == len(answer)
            np.testing.assert_array_equal(cells.suffixes[c][-len(answer) :], answer)
        return [len(cells.prefixes[p]) + len(s) for p, s in zip(cells.prefix_C, cells.suffixes, strict=True)]

    whole = lengths()
    limit = parts.prompt.max_length = max(whole) - 4
    cut = lengths()
    assert cut == [min(n, limit) for n in whole] and cut != whole


def test_the_positive_is_the_labelled_one_even_where_another_of_its_passages_comes_first():
    """Passages of other rows stand before it, and of these some are its own too."""
    parts = small_parts(objective="positive_only", lm_tokens="answer", contrastive_weight=0.0)
    batch = parts.loader.micro_batches(0)[0]
    B, N = batch.own_BN.shape
    batch.own_BN = torch.ones(B, N, dtype=torch.bool)
    batch.positive_BN = torch.zeros(B, N, dtype=torch.bool)
    places = [N - 1, 2, N - 2]
    batch.positive_BN[range(B), places] = True
    cells = parts.objective.cells_ahead(batch, parts.prompt)
    assert cells.passage_C == places
    scores_BN = torch.randn(B, N, generator=torch.Generator().manual_seed(0))
    logp_CA = -torch.rand(B, max(cells.target_lengths), generator=torch.Generator().manual_seed(1))
    totals = {"queries": 3.0, "answer_tokens": 1.0, "all_tokens": 1.0, "pairs": 1.0}
    micro = Micro(batch, scores_BN, torch.zeros(B, 1, dtype=torch.int64), cells, logp_CA)
    terms = parts.objective.values(micro, totals)
    other = scores_BN.clone()
    other[range(B), places] += 1.0  # of nothing but the positives' scores
    again = parts.objective.values(replace(micro, scores_BN=other), totals)
    assert float(again["doc_prior"]) < float(terms["doc_prior"])
