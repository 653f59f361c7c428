"""How a planned run is trained: the values that flags and DeepSpeed's JSON files would have."""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.activations import Activations
from ds_rag.commands.plan.shapes import ModelShape
from ds_rag.commands.plan.workload import Workload

NAMES = ("retriever", "generator")
STAGES = ("0", "1", "2", "3", "3+offload")  # of one engine; offload: optimizer and parameters are on the host


@dataclass(frozen=True)
class Setup:
    """One way to train. stages: ZeRO stages of (the retriever, the generator)."""

    retriever: ModelShape
    generator: ModelShape
    work: Workload
    world: int = 1
    stages: tuple[str, str] = ("2", "2")
    precision: str = "bf16"
    checkpointing: bool = False
    micro_cells: int = 0  # cells per chunk with `--generator_backward exact`; 0: one pass
    retriever_chunk: int = 0  # texts per chunk; 0: all of a micro-batch
    lora: tuple[str, ...] = ()  # the models of which only LoRA matrices are trained
    lora_rank: int = 16
    frozen: str = ""  # the model that is not trained
    encoders: int = 1  # 1 or 2, of the retriever
    teacher_cache: str = ""  # folder of the scores of a generator that is not trained
    device: str = "cuda"  # on "cpu" allocated memory counts only once it is written

    @property
    def stores_scores(self) -> bool:
        """Is each cell scored once, and not again in every step?"""
        return bool(self.teacher_cache) and self.frozen == "generator"

    def shape(self, name: str) -> ModelShape:
        return self.retriever if name == "retriever" else self.generator

    def stage(self, name: str) -> str:
        return self.stages[NAMES.index(name)]

    def parameters(self, name: str) -> tuple[int, int]:
        """(trained, frozen) parameters of a model, over all ranks."""
        shape = self.shape(name)
        copies = self.encoders if name == "retriever" else 1
        count = copies * shape.parameters
        if name == self.frozen:
            return 0, count
        trained = 1 if name == "retriever" and self.work.query_side else copies
        if name in self.lora:
            return trained * shape.lora_parameters(self.lora_rank), count
        learning = trained * (shape.parameters - shape.pooler_parameters)
        return learning, count - learning

    def activations(self, name: str) -> Activations:
        lora = self.lora_rank if name in self.lora else 0
        return Activations(self.shape(name), self.precision, self.checkpointing, lora)

    @property
    def chunks(self) -> int:
        """Number of chunks of the generator in a micro-batch, each with a forward and a backward."""
        cells = self.work.cells(self.world)
        return -(-cells // self.micro_cells) if self.micro_cells else 1

    @property
    def retriever_chunks(self) -> int:
        texts = self.work.retriever().texts
        return int(-(-texts // self.retriever_chunk)) if self.retriever_chunk else 1

    def backwards(self, name: str) -> int:
        """Number of backward passes of an engine in an optimizer step."""
        return self.work.accumulation * (self.chunks if name == "generator" else self.retriever_chunks)
