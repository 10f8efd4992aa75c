"""The client side: a fixed number of passes over one array, on one core."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Compute; element by element, so that no library uses a second core."""
    values = message.content.array_records["arrays"]["values"].numpy()
    for _ in range(int(context.run_config["passes"])):
        values = np.sqrt(values * values + 1.0) - 0.5
    content = {
        "arrays": ArrayRecord({"values": Array(np.ascontiguousarray(values))}),
        "metrics": MetricRecord({"num-examples": 1, "mean": float(values.mean())}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001 - the engine passes it
    """Report the mean; no further work."""
    values = message.content.array_records["arrays"]["values"].numpy()
    metrics = MetricRecord({"num-examples": 1, "mean": float(values.mean())})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
