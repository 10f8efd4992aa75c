"""What the command line adds to the library: waiting, default users, stopping, references of an image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secfl.cli import image, simulated
from secfl.cli.enclaves import await_platform
from secfl.cli.simulated import create_platform, create_vendor, site_user_of, stop_platform
from secfl.cli.waiting import until_ready
from secfl.crypto import strict_json
from secfl.errors import AuthorizationError, StateError, UnavailableError

NOW = 1_900_000_000


def test_waiting_goes_on_only_while_the_partner_is_not_there() -> None:
    """An unavailable partner and a service that does not run yet are asked again; a refusal ends it at once."""
    answers = [
        UnavailableError("client.unreachable", "no answer"),
        StateError("service.not_running", "no live lease"),
        AuthorizationError("release.other_party", "not yours"),
    ]
    asked = iter(answers)

    def ask() -> None:
        raise next(asked)

    with pytest.raises(AuthorizationError):
        until_ready(ask, 10)
    with pytest.raises(StopIteration):
        next(asked)


def test_without_waiting_there_is_one_attempt() -> None:
    """Zero seconds give the first answer."""
    attempts: list[int] = []

    def ask() -> None:
        attempts.append(1)
        raise UnavailableError("client.unreachable", "no answer")

    with pytest.raises(UnavailableError):
        until_ready(ask, 0)
    assert len(attempts) == 1


def test_a_platform_of_root_gets_an_ordinary_user_of_its_own(tmp_path: Path) -> None:
    """The chosen number is stable, differs between platforms and is never root, nobody or a person."""
    create_vendor(tmp_path / "vendor", now=NOW)
    machines = [
        create_platform(tmp_path / name, tmp_path / "vendor", site=name, tee="tdx", now=NOW) for name in ("a", "b")
    ]
    users = [site_user_of(machine) for machine in machines]
    if os.geteuid() != 0:
        assert users == [None, None]
        return
    assert users == [site_user_of(machine) for machine in machines]
    assert all(user is not None and 61_001 <= user < 65_500 for user in users)


def test_an_absent_platform_is_named_with_the_next_command(tmp_path: Path) -> None:
    """Launching waits for the platform, then says how to start it; stopping says that none runs."""
    with pytest.raises(UnavailableError) as caught:
        await_platform(tmp_path / "platform.sock", seconds=0)
    assert caught.value.code == "platform.not_running"
    assert caught.value.hint is not None
    assert "secfl simulated run" in caught.value.hint
    with pytest.raises(UnavailableError, match=r"simulated\.not_running"):
        stop_platform(tmp_path / "platform.sock")


def test_the_reference_of_an_image_is_what_assemble_reads(tmp_path: Path) -> None:
    """The measurement of the shield for the platform's kind, and the trust domain, are handed over."""
    entries = {"shield": {"argv": ["/p"], "env": {}, "cwd": "/", "measurements": {"tdx": "aa", "sgx": "bb"}}}
    (tmp_path / "image").mkdir()
    (tmp_path / "image/reference.json").write_bytes(strict_json.encode({"entrypoints": entries}))
    create_vendor(tmp_path / "vendor", now=NOW)
    create_platform(tmp_path / "platform", tmp_path / "vendor", site="a", tee="sgx", now=NOW)
    public = tmp_path / "platform/platform.json"
    result = CliRunner().invoke(
        image.app,
        ["reference", str(tmp_path / "image"), "--platform", str(public), "--out", str(tmp_path / "out.json")],
    )
    assert result.exit_code == 0, result.output
    domain = strict_json.decode(public.read_bytes())["trust_domain"]
    assert strict_json.decode((tmp_path / "out.json").read_bytes()) == {"measurement": "bb", "trust_domain": domain}


def test_every_command_has_help() -> None:
    """The simulated platform's commands are listed with a sentence each."""
    result = CliRunner().invoke(simulated.app, ["--help"])
    assert result.exit_code == 0
    for name in ("create-root", "create-platform", "run", "stop"):
        assert name in result.output
