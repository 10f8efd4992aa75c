"""The client side: train on one hospital's records, evaluate on those held back."""

from __future__ import annotations

from functools import lru_cache

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from heart import task

app = ClientApp()


@lru_cache(maxsize=1)
def _records(path: str, seed: int) -> tuple[tuple[task.Matrix, task.Vector], tuple[task.Matrix, task.Vector]]:
    return task.load(path, seed)


def _data(context: Context) -> tuple[tuple[task.Matrix, task.Vector], tuple[task.Matrix, task.Vector]]:
    return _records(str(context.node_config["data-path"]), int(context.run_config["seed"]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Improve the received weights on the hospital's training records."""
    training, _ = _data(context)
    arrays = message.content.array_records["arrays"]
    config = context.run_config
    weights = task.train(
        arrays["weights"].numpy(),
        training,
        steps=int(config["local-steps"]),
        rate=float(config["learning-rate"]),
        decay=float(config["weight-decay"]),
    )
    metrics = {"num-examples": len(training[1]), "loss": float(task.evaluate(weights, training)["loss"])}
    content = RecordDict({"arrays": ArrayRecord({"weights": task.as_array(weights)}), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the received weights on the records held back."""
    _, held_back = _data(context)
    arrays = message.content.array_records["arrays"]
    metrics = task.evaluate(arrays["weights"].numpy(), held_back)
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
