"""What can be seen of a GPU without one: embedding, scoring and objectives forward on `device="cuda"`, with tensors
that have no values (fake_gpu.py). A tensor that is made on the CPU and meets one of the GPU raises here as it would
there.

Not possible without values, and so not seen here: the backward; `Objective.differentiate` and `counts` (they read
gradients' norms and sums as numbers); the choice of candidates as cells (`tolist`), which is why they are fixed below;
`retriever_chunk` (sorts by length), `posterior` and `sample` after their forward (which cells are kept is a value);
`auto` (it measures memory); encoding a corpus and decoding answers (vectors and tokens come back to the host).
"""

from __future__ import annotations

import pytest
import torch
from fake_gpu import devices, fake_gpu, move_module
from small import small_generator, small_parts, small_retriever
from torch._subclasses.fake_tensor import FakeTensorMode

from ds_rag.config import ModelConfig
from ds_rag.config.objectives import OBJECTIVES
from ds_rag.data.cells import cells
from ds_rag.data.prompt import make_prompt
from ds_rag.models.cell_scores import score_cells
from ds_rag.models.generator import Generator
from ds_rag.models.pooling import POOLERS
from ds_rag.models.shared_prefix import masked
from ds_rag.models.shared_prefix.support import sample_cells, share_prefixes
from ds_rag.step.candidates import choose_candidates, list_candidates
from ds_rag.step.cell_selection import cell_fractions, token_fractions
from ds_rag.step.objectives import Micro

WAYS = ("one_pass", "exact", "posterior", "sample")


@pytest.fixture(autouse=True)
def no_graph():
    with torch.no_grad():  # a graph asks for the device's streams
        yield


def forward(shared=True, dtype=torch.float32, **flags):
    """A micro-batch's forward on the fake GPU: (Micro, the objective's terms as 0-d tensors)."""
    parts = small_parts(micro_cells="2", **flags)
    if parts.generator is not None and shared:
        assert share_prefixes(parts.generator) is None
    (batch,) = parts.loader.micro_batches(0)
    ahead = parts.joint.cells_ahead(batch)
    totals = parts.objective.counts([batch], [ahead])
    columns_BK = torch.arange(4).expand(len(batch.rows), 4)
    with fake_gpu():
        for model in filter(None, (parts.retriever, parts.generator)):
            move_module(model, dtype)
        batch = batch.to("cuda")
        scores_BN = parts.joint.embedding.forward(batch, True).scores_BN
        assert choose_candidates(scores_BN, batch, "4").device.type == "cuda"
        micro = Micro(batch, scores_BN, columns_BK.to("cuda"))
        if parts.joint.scoring is not None:
            micro.cells = ahead or list_candidates(batch, columns_BK, parts.prompt)
            micro.logp_CA = parts.joint.scoring.forward(micro.cells, batch, True).outputs
        return micro, parts.objective.values(micro, totals)


def check(micro, values, reads=True):
    assert devices([micro.scores_BN, micro.logp_CA, values]) == {"cuda"}
    assert micro.scores_BN.dtype == torch.float32 and micro.scores_BN.shape == (3, 12)
    assert all(value.shape == () and value.dtype == torch.float32 for value in values.values())
    if reads:
        assert micro.logp_CA.dtype == torch.float32 and len(micro.logp_CA) == len(micro.cells)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_on_the_device(name):
    micro, values = forward(objective=name, generator_backward="one_pass")
    check(micro, values, reads=OBJECTIVES[name].needs_generator)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_scores_on_the_device(way):
    check(*forward(generator_backward=way))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_both_layouts(shared, dtype):
    """Weights in half types; scores, log-probabilities and losses stay in float32."""
    check(*forward(shared, dtype, generator_backward="one_pass"))


@pytest.mark.parametrize("flags", [{"prior": "pool"}, {"contrastive_weight": 0.5, "contrastive_symmetric": True}])
def test_settings_that_make_tensors_of_their_own(flags):
    check(*forward(generator_backward="one_pass", **flags))


def test_the_gpu_takes_the_masked_attention(monkeypatch):
    """The flash kernel of the other path is the CPU's alone."""
    calls = []
    plain = masked.attend
    monkeypatch.setattr(masked, "attend", lambda *args: calls.append(args[0][0].device.type) or plain(*args))
    micro, values = forward(generator_backward="one_pass")
    check(micro, values)
    assert calls.count("cuda") == 2  # of one layer: prefixes, then blocks; others are the check of the layout before


def gemma() -> Generator:
    """Soft caps and a sliding window in every other layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(**sizes, head_dim=8, vocab_size=64, num_hidden_layers=2, sliding_window=4)
    return Generator(Gemma2ForCausalLM(config), None)


@pytest.mark.parametrize("make", [gemma, lambda: small_generator(dropout=0.1)], ids=["windows and caps", "dropout"])
def test_attention_with_what_flash_lacks(make):
    generator = make()
    assert share_prefixes(generator) is None
    generator.train()
    with fake_gpu():
        move_module(generator)
        laid_out = generator.lay_out(sample_cells(64), 0)
        assert laid_out.masked
        logp_CA = generator(laid_out.to("cuda"))
    assert logp_CA.device.type == "cuda" and logp_CA.shape == (3, 3)


@pytest.mark.parametrize("pooling", POOLERS)
def test_every_pooling_embeds_on_the_device(pooling):
    """From texts; both sides."""
    retriever = small_retriever(pooling=pooling)
    with fake_gpu():
        move_module(retriever)
        tokens = retriever.tokens(["who leads zor ?", "ann"], "query")
        q_BD, p_ND, temperature = retriever(tokens, tokens)
    assert devices([tokens.ids_BT, q_BD, p_ND, temperature]) == {"cuda"} and q_BD.dtype == torch.float32


def test_cells_from_texts_are_scored_on_the_device():
    generator = small_generator()
    prompt = make_prompt(ModelConfig(), generator.tokenizer, generator.max_length)
    pairs = cells(prompt, ["who ?"], [["ann was here", "bob was here"]], ["ann"])
    with fake_gpu():
        move_module(generator)
        assert score_cells(generator, pairs).device.type == "cuda"


def test_shares_of_cells_are_computed_on_the_device():
    """What `posterior` and `sample` go by; the choice itself is a value."""
    with fake_gpu():
        weight_CA, query_C = torch.ones(4, 3, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
        fractions = token_fractions(weight_CA, query_C, 1)
        assert devices([fractions, cell_fractions(fractions, query_C, 1)]) == {"cuda"}


def test_a_tensor_that_stays_on_the_cpu_is_seen():
    """Else all of the above would pass whatever the code does."""
    generator = small_generator()
    with fake_gpu():
        move_module(generator)
        laid_out = generator.lay_out(sample_cells(64), 0)
        with pytest.raises(RuntimeError, match="found at least two devices"):
            generator(laid_out)


def test_the_detours_of_the_fake_gpu_are_the_operations_themselves():
    """Shapes and types as torch's own indexing and casting give them on the CPU."""
    x, rows = torch.arange(24.0).view(2, 3, 4), torch.tensor([1, 0, 1])
    indices = [0, slice(1, None), (0, 1), (slice(None), [0, 2]), (..., None), (..., 1), (None, 1), rows]
    indices += [(slice(None), None, 1), (rows[:2], slice(2), rows[:2])]
    wanted = [tuple(x[index].shape) for index in indices]
    with fake_gpu() as mode:
        assert isinstance(mode, FakeTensorMode)
        y = x.to("cuda")
        moved = [tuple(p.to("cuda") if p is rows else p for p in i) if isinstance(i, tuple) else i for i in indices]
        moved = [i.to("cuda") if isinstance(i, torch.Tensor) else i for i in moved]
        assert [tuple(y[index].shape) for index in moved] == wanted
        assert (
            y.half().dtype == torch.float16 and y.long().dtype == torch.int64 and y.to(torch.bool).dtype == torch.bool
        )
