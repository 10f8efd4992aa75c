"""The server side: federated averaging of an array of 50 000 numbers."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run configuration asks for."""
    config = context.run_config
    nodes = int(config["min-nodes"])
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"values": Array(np.linspace(0.0, 1.0, 50_000))}),
        num_rounds=int(config["num-rounds"]),
        timeout=float(config["round-timeout"]),
    )
    np.savez("final_model.npz", values=result.arrays["values"].numpy())
