"""The server side: federated averaging, then the model is written to `final_model.npz`."""

from __future__ import annotations

import random

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from heart import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run configuration asks for."""
    config = context.run_config
    random.seed(int(config["seed"]))  # the strategy samples nodes with the module's generator
    nodes = int(config["min-nodes"])
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"weights": task.as_array(task.initial_weights())}),
        num_rounds=int(config["num-rounds"]),
        timeout=float(config["round-timeout"]),
    )
    np.savez("final_model.npz", weights=result.arrays["weights"].numpy())
