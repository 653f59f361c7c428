"""How a planned run is trained: what ds_rag's flags and DeepSpeed's JSON files say of it."""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.activations import Activations
from ds_rag.commands.plan.shapes import ModelShape
from ds_rag.commands.plan.workload import Workload

NAMES = ("retriever", "generator")
STAGES = ("0", "1", "2", "3", "3+offload")  # of an engine; offload: optimizer and parameters lie on the host


@dataclass(frozen=True)
class Setup:
    """One way to train. Stages are by engine: (retriever's, generator's)."""

    retriever: ModelShape
    generator: ModelShape
    work: Workload
    world: int = 1
    stages: tuple[str, str] = ("2", "2")
    precision: str = "bf16"
    checkpointing: bool = False
    micro_cells: int = 0  # cells of a chunk of the exact two-pass way; 0: one pass
    retriever_chunk: int = 0  # texts; 0: all of a micro-batch
    lora: tuple[str, ...] = ()  # the engines that train thin matrices only
    lora_rank: int = 16
    frozen: str = ""  # the engine that does not learn
    encoders: int = 1  # of the retriever
    device: str = "cuda"  # "cpu": what is allocated counts once it is written to

    def shape(self, name: str) -> ModelShape:
        return self.retriever if name == "retriever" else self.generator

    def stage(self, name: str) -> str:
        return self.stages[NAMES.index(name)]

    def parameters(self, name: str) -> tuple[int, int]:
        """(trained, not trained) elements of a model, on all ranks together."""
        shape = self.shape(name)
        copies = self.encoders if name == "retriever" else 1
        whole = copies * shape.parameters
        if name == self.frozen:
            return 0, whole
        if name in self.lora:
            return copies * shape.lora_parameters(self.lora_rank), whole
        still = copies * shape.pooler_parameters
        return whole - still, still

    def activations(self, name: str) -> Activations:
        lora = self.lora_rank if name in self.lora else 0
        return Activations(self.shape(name), self.precision, self.checkpointing, lora)

    @property
    def chunks(self) -> int:
        """Forward and backward passes of the generator in a micro-batch."""
        cells = self.work.cells(self.world)
        return -(-cells // self.micro_cells) if self.micro_cells else 1

    @property
    def retriever_chunks(self) -> int:
        texts = self.work.retriever().texts
        return int(-(-texts // self.retriever_chunk)) if self.retriever_chunk else 1

    def backwards(self, name: str) -> int:
        """Of an engine in an optimizer step."""
        return self.work.accumulation * (self.chunks if name == "generator" else self.retriever_chunks)
