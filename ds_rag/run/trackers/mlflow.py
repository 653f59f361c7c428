"""MLflow. Its environment variables say where figures are sent: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ..."""

from __future__ import annotations

import os
from types import ModuleType

from ds_rag.run.trackers import PROJECT, TrackedRun

# A server that does not answer delays a step by seconds, not by MLflow's default of minutes; then the run continues
# without it.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Mlflow:
    def __init__(self, mlflow: ModuleType):
        self.mlflow = mlflow

    def log(self, step: int, values: dict[str, float]) -> None:
        """MLflow refuses @ in a name, so recall@1 is logged as `eval/recall_at_1`."""
        self.mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in values.items()}, step=step)

    def finish(self) -> None:
        self.mlflow.end_run()


def start(run: TrackedRun) -> Mlflow:
    """Starts or continues the run. A resumed run keeps its id and the parameters of its first start: MLflow does not
    allow them to change."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    import mlflow

    known = run.known_id("mlflow")
    if known is not None:
        mlflow.start_run(run_id=known)
        return Mlflow(mlflow)
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    started = mlflow.start_run(run_name=run.folder.name)
    run.keep_id("mlflow", started.info.run_id)
    mlflow.log_params(run.config)
    return Mlflow(mlflow)
