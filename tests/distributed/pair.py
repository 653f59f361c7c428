"""A tiny retriever and generator, and their training on two engines as the real loop does it.

Micro-batch m of rank r holds the rows of block m * world + r. With `gather` the pool is the passages of all
ranks' blocks of one m, else those of the block itself.
Shape legend: B queries, N passages of the pool, K candidates, C = B * K cells, T tokens, A target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ds_rag.config import OptimConfig
from ds_rag.data.batch import Cells, Tokens, lay_out_cells
from ds_rag.engines.deepspeed_engine import make_engine
from ds_rag.engines.engine_pair import Engines
from ds_rag.losses import rag_sequence
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever, RetrieverSettings
from ds_rag.models.sharded import gathered
from ds_rag.runtime import collectives

B, N, K, VOCABULARY = 3, 4, 3, 50
NAMES = ("retriever", "generator")
LEARNING_RATES = {"retriever": 1e-2, "generator": 5e-3}
# An epsilon well above rounding noise: else Adam makes a full step of a gradient that is zero but for noise.
OPTIM = OptimConfig(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-4)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NEVER_CLIP, ALWAYS_CLIP = 1e9, 0.05


@dataclass
class Case:
    """One training run of `steps` optimizer steps over `accumulation` micro-batches per rank."""

    stages: tuple[int, int] = (2, 2)  # retriever, generator
    precision: str = "fp32"
    accumulation: int = 1
    gather: bool = True
    max_grad_norm: float = ALWAYS_CLIP
    steps: int = 3
    spoil: tuple[int, str, float] | None = None  # step, model, value put into one gradient on the last rank
    frozen: str = ""
    generator_alone: int = 0  # this many steps at first, as a language-model warm-up
    json_optimizer: bool = False  # AdamW from the DeepSpeed configuration instead of ours
    extra: dict[str, Any] = field(default_factory=dict)  # laid over the DeepSpeed configuration
    seed: int = 0


@dataclass
class Block:
    """The rows of one micro-batch of one rank."""

    queries: Tokens
    passages: Tokens
    candidates_BK: torch.Tensor  # int64, columns of the pool
    cells: Cells
    answer_mask_BA: torch.Tensor


@dataclass
class Record:
    """What a run did, by step; parameters by '<model>.<name>' after the last step."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    start: dict[str, torch.Tensor] = field(default_factory=dict)  # parameters before the first step
    scales: list[tuple[float, ...]] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)  # of the first step, before clipping
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    after: list[dict[str, torch.Tensor]] = field(default_factory=list)  # parameters after each step


def make_models(seed: int = 0) -> dict[str, nn.Module]:
    """Retriever (BERT, learned temperature) and generator (Llama, tied embeddings), fixed random weights."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
    }
    shape |= {"num_attention_heads": 2, "max_position_embeddings": 32}
    drop: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = BertModel(BertConfig(**shape, **drop), add_pooling_layer=False)
    lm = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    for module in (encoder, lm):  # away from the tiny initial weights, at which nothing matters
        for p in module.parameters():
            p.data += 0.2 * torch.randn_like(p)
    settings = RetrieverSettings(temperature=0.3, learn_temperature=True)
    return {"retriever": Retriever(encoder, None, settings), "generator": Generator(lm, None)}


def make_blocks(count: int, pool: int, seed: int) -> list[Block]:
    """`count` blocks whose candidates are drawn from a pool of `pool` passages."""
    random = torch.Generator().manual_seed(seed)

    def tokens(rows: int, length: int) -> Tokens:
        ids = torch.randint(1, VOCABULARY, (rows, length), generator=random)
        lengths = torch.randint(2, length + 1, (rows, 1), generator=random)
        return Tokens(ids, (torch.arange(length) < lengths).long())

    def block() -> Block:
        candidates = torch.stack([torch.randperm(pool, generator=random)[:K] for _ in range(B)])
        words = torch.randint(1, VOCABULARY, (B * K, 9), generator=random).numpy()
        targets = [words[c // K * K, :3] for c in range(B * K)]  # one answer per query
        lengths = torch.randint(3, 7, (B * K,), generator=random).tolist()
        cells = lay_out_cells([w[3 : 3 + n] for w, n in zip(words, lengths, strict=True)], targets, 0)
        mask = torch.ones(B, 3, dtype=torch.bool)
        mask[0, 2] = False
        return Block(tokens(B, 6), tokens(N, 8), candidates, cells, mask)

    return [block() for _ in range(count)]


def blocks_of(case: Case, world: int, step: int) -> list[Block]:
    pool = N * world if case.gather else N
    return make_blocks(case.accumulation * world, pool, 1000 * case.seed + step)


class Gather(torch.autograd.Function):
    """Concatenation over ranks whose backward is the sum over ranks, cut to this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        ctx.rows = local.shape[0]
        parts = [torch.empty_like(local) for _ in range(collectives.world())]
        torch.distributed.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = collectives.add_over_ranks(grads[0].contiguous())
        return total[collectives.rank() * ctx.rows : (collectives.rank() + 1) * ctx.rows]


def gather_with_grad(local: torch.Tensor) -> torch.Tensor:
    """(n, ...) on each rank -> (world * n, ...) on all. With a loss that is a mean over the local queries and
    DeepSpeed's average over ranks, the gradient is that of the mean over all queries."""
    return local if collectives.world() == 1 else Gather.apply(local)


def block_loss(
    q_BD: torch.Tensor, pool_ND: torch.Tensor, temperature: torch.Tensor, logp_CA: torch.Tensor, block: Block
) -> torch.Tensor:
    """Mean over the block's queries."""
    scores_BK = (q_BD @ pool_ND.T / temperature).gather(1, block.candidates_BK)
    return rag_sequence(scores_BK, logp_CA.view(B, K, -1), block.answer_mask_BA).mean()


def ds_config(case: Case, which: int) -> dict[str, Any]:
    stage = case.stages[which]
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": B,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 5000},  # several buckets
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
        "bf16": {"enabled": case.precision == "bf16"},
        "fp16": {"enabled": case.precision == "fp16", "initial_scale_power": 10, "hysteresis": 1},
    }
    if stage == 3:  # else these tiny parameters would all stay whole on every rank
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 2000}
    if stage > 0 and case.precision != "fp32":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if case.json_optimizer:
        params: dict[str, Any] = {
            "torch_adam": True,
            "lr": LEARNING_RATES[NAMES[which]],
            "eps": OPTIM.adam_epsilon,
        }
        params |= {"betas": [OPTIM.adam_beta1, OPTIM.adam_beta2], "weight_decay": OPTIM.weight_decay}
        config["optimizer"] = {"type": "AdamW", "params": params}
    for section, values in case.extra.items():
        config[section] = config.get(section, {}) | values if isinstance(values, dict) else values
    return config


def allow_fp16() -> None:
    """For the rest of this rank's life: DeepSpeed refuses fp16 on a CPU, where its logic does run."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def make_engines(case: Case) -> Engines:
    models: dict[str, Any] = make_models(case.seed)
    if case.precision == "fp16":
        allow_fp16()
    for which, name in enumerate(NAMES):
        if name == case.frozen:
            models[name].requires_grad_(False)
        else:
            models[name] = make_engine(models[name], ds_config(case, which), OPTIM, LEARNING_RATES[name])
    engines = Engines(**models, max_grad_norm=case.max_grad_norm)
    engines.train()
    return engines


def accumulate(engines: Engines, case: Case, step: int) -> float:
    """The micro-batches of one optimizer step, up to the gradients; this rank's mean loss."""
    mine = blocks_of(case, collectives.world(), step)[collectives.rank() :: collectives.world()]
    total = 0.0
    for m, block in enumerate(mine):
        engines.boundary(m == len(mine) - 1)
        embedded = engines.retriever(block.queries, block.passages)
        logp_CA = engines.generator(block.cells)
        leaves = [x.detach().float().requires_grad_() for x in (*embedded, logp_CA)]
        q_BD, p_ND, temperature, logp = leaves
        pool_ND = gather_with_grad(p_ND) if case.gather else p_ND
        loss = block_loss(q_BD, pool_ND, temperature, logp, block) / len(mine)
        loss.backward()
        if case.spoil and case.spoil[0] == step and collectives.rank() == collectives.world() - 1:
            leaf = q_BD if case.spoil[1] == "retriever" else logp
            leaf.grad[0, 0] = case.spoil[2]
        if step >= case.generator_alone:
            engines.backward("retriever", embedded, [leaf.grad for leaf in leaves[:3]])
        engines.backward("generator", [logp_CA], [leaves[3].grad])
        total += float(loss.detach())
    return total


def parameters(engines: Engines) -> dict[str, torch.Tensor]:
    """The whole fp32 master weights, by '<model>.<name>'; asserts that the models follow them."""
    found = {}
    for name, module in engines.modules.items():
        for key, p in module.named_parameters():
            master = master_weight(engines.learning.get(name), p)
            with gathered([p]):
                assert torch.equal(p, master.to(p.dtype)), f"{name}.{key} is not its master weight"
            found[f"{name}.{key}"] = master.detach().clone()
    return found


def master_weight(engine: Any, p: torch.Tensor) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    if not p.requires_grad:  # has none
        with gathered([p]):
            return p.detach().clone()
    if hasattr(p, "_hp_mapping") or (hasattr(p, "ds_id") and engine is not None):  # ZeRO
        return safe_get_full_fp32_param(p)
    if engine is not None and hasattr(engine.optimizer, "fp32_groups"):  # stage 0 in half precision
        groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
        pairs = [pair for halves, masters in groups for pair in zip(halves, masters, strict=True)]
        return next(master for half, master in pairs if half is p)
    return p


def run_steps(engines: Engines, case: Case, first: int = 0, gradients: bool = False) -> Record:
    """Steps first .. case.steps - 1."""
    record = Record(start=parameters(engines))
    for step in range(first, case.steps):
        record.losses.append(accumulate(engines, case, step))
        if gradients and step == first:
            record.gradients = full_gradients(engines)
        only = {"generator"} if step < case.generator_alone else None
        result = engines.step(lr_factor(step), only)
        record.norms.append(result.grad_norm)
        record.skipped.append(result.skipped)
        scales = [getattr(e.optimizer, "loss_scale", 1.0) for e in engines.learning.values()]
        record.scales.append(tuple(scales))
        record.after.append(parameters(engines))
    record.parameters = record.after[-1]
    return record


def train(case: Case, gradients: bool = False) -> Record:
    return run_steps(make_engines(case), case, gradients=gradients)


def train_all(cases: list[Case], gradients: bool = False) -> list[Record]:
    """On one set of ranks: starting them costs more than a case."""
    return [train(case, gradients) for case in cases]


def lr_factor(step: int) -> float:
    return (1.0, 0.5, 0.8, 0.4)[step % 4]


def full_gradients(engines: Engines) -> dict[str, torch.Tensor]:
    """The averaged gradients as the next step reads them, whole, on every rank."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for name, engine in engines.learning.items():
        for key, p in engine.module.named_parameters():
            if p.requires_grad:
                # At stage 1 in bf16 p.grad is there too, and is this rank's own, of one backward.
                sharded = (
                    hasattr(engine, "zero_optimization_stage") and engine.zero_optimization_stage()
                )  # not PlainEngine
                grad = safe_get_full_grad(p) if sharded else p.grad
                found[f"{name}.{key}"] = grad.detach().float().clone()
    return found


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of tensors of the same names."""
    assert one.keys() == two.keys()
    return max(float((one[k] - two[k]).abs().max()) for k in one)


def off_course(run: Record, other: Record) -> float:
    """How far two runs' updates (last parameters minus first) are apart, as a share of the other's length."""

    def update(record: Record) -> torch.Tensor:
        return torch.cat([(record.parameters[k] - record.start[k]).flatten() for k in sorted(record.start)])

    return float((update(run) - update(other)).norm() / update(other).norm())
