"""Rounds: whether the rounds that an attested aggregator reported are those that the policy asks for.

The report comes from the aggregator's enclave, whose code the policy pins; the condition makes a run that ended early,
or that aggregated fewer sites than agreed (FL-24), release nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from secfl.errors import StateError
from secfl.policy.model import Federation

__all__ = ["require_rounds"]


def require_rounds(federation: Federation, progress: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of training rounds when all were reported with enough sites.

    Args:
        progress: records with `service`, `phase`, `round` and `replies`, in the order of the log.

    Raises:
        StateError: `release.rounds` or `release.too_few_clients`.
    """
    trained = {
        record["round"]: len(set(record["replies"]))
        for record in progress
        if record["service"] == federation.aggregator and record["phase"] == "train"
    }
    if set(trained) != set(range(1, federation.rounds + 1)):
        raise StateError(
            "release.rounds",
            "the training rounds that were reported are not those of the policy",
            expected=federation.rounds,
            actual=len(trained),
        )
    fewest = min(trained.values())
    if fewest < federation.minimum_clients:
        raise StateError(
            "release.too_few_clients",
            "a round aggregated fewer sites than the policy asks for",
            expected=federation.minimum_clients,
            actual=fewest,
        )
    return len(trained)
