"""Attacks on the rounds of a study: too few sites in one, or a run that ended early."""

from __future__ import annotations

from typing import Any

import pytest

from secfl.errors import StateError
from secfl.manager.rounds import require_rounds
from secfl.policy.model import Federation

SITES = ["a", "b", "c"]
FEDERATION = Federation(
    engine="flower",
    engine_version="1.41.0",
    aggregator="aggregator",
    trainers={site: f"trainer-{site}" for site in SITES},
    rounds=3,
    minimum_clients=2,
    app_bundle="ab" * 32,  # type: ignore[arg-type]  # hex text is what a policy holds
)


def reported(rounds: dict[int, list[str]], *, service: str = "aggregator", phase: str = "train") -> list[Any]:
    """Progress records as the log holds them."""
    return [{"service": service, "phase": phase, "round": n, "replies": sites} for n, sites in rounds.items()]


def test_all_rounds_with_enough_sites_release() -> None:
    """The agreed rounds, each with the agreed number of sites, meet the condition."""
    assert require_rounds(FEDERATION, reported({1: SITES, 2: SITES[:2], 3: SITES})) == 3


@pytest.mark.parametrize("thin", [[], ["a"], ["a", "a"]])
def test_fl_24_a_round_with_too_few_sites_releases_nothing(thin: list[str]) -> None:
    """One thin round is enough to keep the model back, and a site counts once however often it is named."""
    with pytest.raises(StateError) as caught:
        require_rounds(FEDERATION, reported({1: SITES, 2: thin, 3: SITES}))
    assert caught.value.code == "release.too_few_clients"


@pytest.mark.parametrize(
    "records",
    [
        [],
        reported({1: SITES, 2: SITES}),
        reported({1: SITES, 2: SITES, 4: SITES}),
        reported({1: SITES, 2: SITES, 3: SITES, 4: SITES}),
        reported({1: SITES, 2: SITES, 3: SITES}, service="trainer-a"),
        reported({1: SITES, 2: SITES, 3: SITES}, phase="evaluate"),
    ],
)
def test_fl_22_a_run_that_ended_early_releases_nothing(records: list[Any]) -> None:
    """Missing, extra and foreign rounds, or rounds that only evaluated, do not meet the condition."""
    with pytest.raises(StateError) as caught:
        require_rounds(FEDERATION, records)
    assert caught.value.code == "release.rounds"
