"""`secfl status` and `secfl attest` against a served manager."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manager_world import study_policy
from party_world import PartyWorld
from secfl.cli import attest, status
from secfl.errors import ConfigError
from secfl.party.attestation import attest_manager
from secfl.party.documents import propose, vote
from secfl.party.session import ManagerSession


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PartyWorld]:
    """One manager, pinned by two parties."""
    made = PartyWorld(tmp_path_factory.mktemp("status"))
    for name in ("cleveland", "model-owner"):
        attest_manager(made.homes[name], made.reference(), made.trust(), now=int(time.time()))
    yield made
    made.close()


def test_a_proposal_shows_who_has_voted(world: PartyWorld) -> None:
    """Until a study is in force, text and JSON name each member of its board with its vote."""
    runner, home = CliRunner(), str(world.homes["cleveland"].path)
    assert "nothing is proposed" in runner.invoke(status.app, ["lungs", "--home", home]).output
    session = ManagerSession(world.homes["cleveland"])
    policy = study_policy(world.deployment, world.heart.owner_hash).replace(b'name": "heart"', b'name": "lungs"')
    propose(session, "lungs", policy, now=int(time.time()))
    vote(session, "lungs", policy, approve=True)
    shown = runner.invoke(status.app, ["lungs", "--home", home]).output
    assert "waiting" in shown
    document = json.loads(runner.invoke(status.app, ["lungs", "--home", home, "--json"]).output)
    assert list(document["proposals"].values()) == [{"cleveland": "yes", "model-owner": "waiting"}]


def test_a_study_in_force_shows_its_parts_under_the_banner(world: PartyWorld) -> None:
    """The next commands stand beside each part, and a simulated platform is always said."""
    home = str(world.homes["cleveland"].path)
    shown = CliRunner().invoke(status.app, ["heart", "--home", home]).output
    assert "SIMULATED" in shown
    assert "secfl run heart/aggregator" in shown
    assert json.loads(CliRunner().invoke(status.app, ["heart", "--home", home, "--json"]).output)["version"] == 1


def test_an_update_of_a_study_in_force_shows_who_has_to_vote(world: PartyWorld) -> None:
    """While an update is open, its votes stand below the parts of the version that still holds."""
    runner, home = CliRunner(), str(world.homes["cleveland"].path)
    session = ManagerSession(world.homes["cleveland"])
    update = study_policy(world.deployment, world.heart.owner_hash, rounds=3)
    propose(session, "heart", update, now=int(time.time()))
    vote(session, "heart", update, approve=True)
    shown = runner.invoke(status.app, ["heart", "--home", home]).output
    assert "version 1 in force" in shown
    assert "waiting" in shown
    state = json.loads(runner.invoke(status.app, ["heart", "--home", home, "--json"]).output)
    assert state["version"] == 1
    assert list(state["proposals"].values()) == [{"cleveland": "yes", "model-owner": "waiting"}]


def test_a_verdict_is_never_shown_under_another_studys_name(world: PartyWorld, tmp_path: Path) -> None:
    """The target and the party's copy of the policy have to name the same study."""
    (tmp_path / "policy.yaml").write_bytes(world.heart.policy)
    home = str(world.homes["cleveland"].path)
    arguments = ["other/aggregator", "--policy", str(tmp_path / "policy.yaml"), "--home", home]
    with world.answering("aggregator"):
        refused = CliRunner().invoke(attest.app, arguments)
        accepted = CliRunner().invoke(attest.app, ["heart/aggregator", *arguments[1:]])
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.code == "attest.target"
    assert "accepted" in accepted.output
    assert "SIMULATED" in accepted.output
