"""TensorBoard: event files in RUN/tensorboard, for `tensorboard --logdir RUN`."""

from __future__ import annotations

from typing import Any

from ds_rag.run.trackers import TrackedRun


class TensorBoard:
    def __init__(self, writer: Any):
        self.writer = writer

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


def start(run: TrackedRun) -> TensorBoard:
    """Opens the run's event files. A resumed run writes to the same folder; old events of repeated steps are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    again = None if run.resumed_at is None else run.resumed_at + 1
    return TensorBoard(SummaryWriter(str(run.folder / "tensorboard"), purge_step=again))
