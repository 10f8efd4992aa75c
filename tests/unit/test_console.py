"""The command line's edges: exit codes, JSON errors, closed pipes, hostile output, next steps."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manager_world import Heart
from secfl import errors
from secfl.cli.console import out, show_error, table
from secfl.cli.demo.compare import join_rounds, model_digest
from secfl.cli.demo.memory import peak_memory
from secfl.cli.enclaves import entry_of, prepare_host
from secfl.cli.run import show_failure, show_phases
from secfl.cli.status import next_steps
from secfl.crypto import strict_json
from secfl.errors import AppraisalError, ConfigError, EncodingError, Finding, SecflError
from secfl.policy.decode import decode
from secfl.testing.sites import Site, SiteStepError


def secfl(*arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "secfl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, **changes)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["party", "show", "--home", "/nonexistent"], 17),
        (["status", "heart", "--home", "/nonexistent"], 17),
        (["policy", "check", "/dev/null"], None),
        (["nonsense"], 2),
        (["attest"], 2),
        (["--help"], 0),
    ],
)
def test_sv_15_each_end_has_its_exit_code(arguments: list[str], code: int | None) -> None:
    """Success is 0, wrong usage 2, an error of the tree 10 to 18; a traceback never stands for an error."""
    done = secfl(*arguments)
    assert done.returncode == code if code is not None else 10 <= done.returncode <= 18
    assert "Traceback" not in done.stderr
    if done.returncode not in (0, 2):
        assert done.stdout == ""


def test_exit_codes_differ_by_class() -> None:
    """Every class of the tree has a code of its own, none of them 0, 1 or 2."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SecflError)]
    codes = {kind: kind.exit_code for kind in classes if kind is not SecflError}
    assert len(set(codes.values())) == len(codes)
    assert set(codes.values()) <= set(range(10, 19))


def test_an_error_as_json_is_one_document() -> None:
    """With --json a program gets class, code and hint on standard output, and the same exit code."""
    done = secfl("status", "heart", "--home", "/nonexistent", "--json")
    assert done.returncode == 17
    document = json.loads(done.stdout)["error"]
    assert (document["class"], document["code"]) == ("ConfigError", "manager.not_attested")


@pytest.mark.parametrize("arguments", [["--help"], ["status", "heart", "--home", "/nonexistent", "--json"]])
def test_sv_15_a_closed_pipe_is_no_success(arguments: list[str]) -> None:
    """Output that nobody reads ends with a code other than 0, and without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "secfl", *arguments], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=30
    )
    os.close(writer)
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_nw_12_names_from_outside_carry_no_markup() -> None:
    """Brackets in cells and messages are shown as they are."""
    with out.capture() as captured:
        out.print(table("t", ("a",), [("[bold]x[/bold]",)]))
    assert "[bold]x[/bold]" in captured.get()


def test_findings_are_shown_in_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Rule, expected, found and remedy reach the user in both forms."""
    error = AppraisalError([Finding("appraisal.measurement", "aa", "bb", "rebuild")])
    show_error(error)
    show_error(error, as_json=True)
    captured = capsys.readouterr()
    assert "appraisal.measurement" in captured.err
    assert json.loads(captured.out)["error"]["findings"][0]["remedy"] == "rebuild"


def phases(*lines: bytes) -> dict[str, Any] | None:
    reader, writer = os.pipe()
    os.write(writer, b"".join(lines))
    os.close(writer)
    return show_phases(reader)


def test_phases_are_shown_and_the_failure_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    """The operator sees each phase; a failure comes back with its code."""
    failure = phases(
        b'{"event":"attested","lease_until":9,"ms":12}\n', b'{"event":"failed","code":"a.b","message":"m"}\n'
    )
    assert failure == {"event": "failed", "code": "a.b", "message": "m"}
    assert "attested lease_until=9" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        b"plain\n",
        b'{"event":7}\n',
        b'{"event":["x"],"ms":null}\n',
        b'{"event":"x","ms":null}\n',
        b'{"event":"x","ms":{"a":1}}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"7\n",
        b"no end",
        b'{"event":"\\u001b[2J","ms":1}\n',
        b"\x1b]0;title\x07\n",
        b"[red]text[/nonsense]\n",
    ],
)
def test_a_hostile_console_neither_ends_nor_rewrites_the_screen(
    line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program may write anything into the pipe: it is shown without control characters, and nothing breaks."""
    assert phases(line[:60_000]) is None
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("failure", [{}, {"code": 7, "findings": "x"}, {"findings": [1, ["a"], ["a", "b", "c", 4]]}])
def test_a_forged_failure_is_shown_as_far_as_it_goes(
    failure: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing and wrong members do not stop the command before it knows the exit status."""
    show_failure("heart/aggregator", failure)
    show_failure("heart/aggregator", {"code": "a.b", "message": "m", "findings": [["r", "e", "f", "w"]]})
    assert "heart/aggregator" in capsys.readouterr().err


@pytest.mark.parametrize(
    "document",
    [[], {}, {"entrypoints": []}, {"entrypoints": {"shield": {}}}, {"entrypoints": {"shield": {"argv": 7}}}, 7, "x"],
)
def test_a_malformed_reference_file_is_a_configuration_error(tmp_path: Path, document: object) -> None:
    """The image and the entry are named."""
    (tmp_path / "reference.json").write_bytes(strict_json.encode(document))
    with pytest.raises(ConfigError, match=r"image\.entry"):
        entry_of(tmp_path, "shield")
    (tmp_path / "reference.json").write_bytes(b"{")
    with pytest.raises(EncodingError):
        entry_of(tmp_path, "shield")


def test_fs_08_a_hard_link_below_the_host_directory_is_not_given_away(tmp_path: Path) -> None:
    """As root, preparing the host directory refuses a file with a second name, which could be one of the system."""
    socket = tmp_path / "socket"
    socket.touch()
    prepare_host(socket, tmp_path / "host", ("volumes",))
    assert (tmp_path / "host" / "volumes").is_dir()
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(socket, 61_001, 61_001)
    (tmp_path / "secret").touch()
    os.link(tmp_path / "secret", tmp_path / "host" / "volumes" / "linked")
    with pytest.raises(ConfigError, match=r"platform\.host_dir"):
        prepare_host(socket, tmp_path / "host")
    assert (tmp_path / "secret").stat().st_uid == 0


def status(**changes: Any) -> dict[str, Any]:
    return {"grants": [], "services": [], "refusals": [], "exits": {}} | changes


def test_next_steps_name_who_does_what() -> None:
    """Missing grants, missing, running, refused and ended services each have their next command."""
    policy = decode(Heart().policy)
    granted = [{"owner_policy": "cleveland/cohort", "revoked": False}]
    assert next_steps(policy, status()) == [
        ("cleveland", "no grant for cohort", "secfl grant create POLICY"),
        ("aggregator", "missing", "secfl run heart/aggregator"),
        ("trainer", "missing", "secfl run heart/trainer"),
    ]
    assert next_steps(policy, status(grants=[granted[0] | {"revoked": True}]))[0][0] == "cleveland"
    live = [{"service": "aggregator", "live": True, "site": "hub"}, {"service": "trainer", "live": False, "site": "x"}]
    refused = [{"service": "trainer", "code": "appraisal.roots"}]
    assert next_steps(policy, status(grants=granted, services=live, refusals=refused)) == [
        ("aggregator", "running at hub", "secfl attest heart/aggregator"),
        ("trainer", "refused: appraisal.roots", "see the findings"),
    ]


def test_a_release_is_named_only_after_a_good_end() -> None:
    """Status 0 leads to the volume that the policy releases, another status to a new launch, a trainer to nothing."""
    policy = decode(Heart().policy)
    granted = [{"owner_policy": "cleveland/cohort", "revoked": False}]
    good = next_steps(policy, status(grants=granted, exits={"aggregator": 0, "trainer": 0}))
    assert [row[2] for row in good] == ["secfl release heart model", "nothing"]
    bad = next_steps(policy, status(grants=granted, exits={"aggregator": 124, "trainer": 1}))
    assert [row[2] for row in bad] == ["secfl run heart/aggregator", "secfl run heart/trainer"]


def test_runs_are_compared_bit_for_bit() -> None:
    """Signs of zero and missing rounds count, a value that is no number equals itself, and no round is no proof."""
    assert join_rounds({}, {}) == ([], False)
    assert join_rounds({1: {"a": 0.5}}, {1: {"a": 0.5}})[1]
    assert not join_rounds({1: {"a": 0.0}}, {1: {"a": -0.0}})[1]
    assert join_rounds({1: {"a": math.nan}}, {1: {"a": math.nan}})[1]
    rows, equal = join_rounds({1: {"a": 0.5}}, {1: {"a": 0.5}, 2: {"a": 0.5}})
    assert not equal
    assert [row["round"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update(a=arrays["a"] + 1),
        lambda arrays: arrays.update(a=arrays["a"].reshape(3, 2)),
        lambda arrays: arrays.update(a=arrays["a"].astype("f4")),
        lambda arrays: arrays.update(c=arrays.pop("b")),
    ],
)
def test_a_model_digest_covers_names_types_shapes_and_values(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Any difference in an array changes it; the container's time does not."""
    arrays: dict[str, Any] = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(2)}
    np.savez(tmp_path / "one.npz", **arrays)
    np.savez_compressed(tmp_path / "two.npz", **arrays)
    assert model_digest(tmp_path / "one.npz") == model_digest(tmp_path / "two.npz")
    change(arrays)
    np.savez(tmp_path / "two.npz", **arrays)
    assert model_digest(tmp_path / "one.npz") != model_digest(tmp_path / "two.npz")


def test_memory_is_told_by_kind_of_process() -> None:
    """A child is found under its kind, with a peak above nothing."""
    script = "import sys; print(1, flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", script, "secfl.shield"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    found = peak_memory()
    child.communicate()
    assert any(name.startswith("shield (") and size > 1 for name, size in found)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that runs as the caller."""
    return Site("a", "127.0.0.1", tmp_path, None)


def test_a_sites_step_gives_its_value_or_its_error(site: Site) -> None:
    """Values, refusals, answers without a form and a sudden end each come back in the parent, once."""

    def refuse() -> None:
        raise ConfigError("a.b", "no")

    assert site.call(lambda: {"x": [1, "y"]}) == {"x": [1, "y"]}
    with pytest.raises(SiteStepError, match=r"a\.b") as caught:
        site.call(refuse)
    assert caught.value.details["reason"] == "a.b"
    with pytest.raises(SiteStepError, match=r"json\.not_canonical"):
        site.call(lambda: 0.5)
    with pytest.raises(SiteStepError, match="without an answer"):
        site.call(lambda: os._exit(0))


def test_ev_36_a_stream_that_breaks_off_is_not_an_end(site: Site) -> None:
    """What was emitted comes; a step that dies is an error and not the end of the stream."""

    def emit_two(emit: Callable[[Any], None]) -> None:
        emit(1)
        emit(2)

    assert list(site.stream(emit_two)) == [1, 2]
    got: list[int] = []

    def drain(function: Callable[[Callable[[Any], None]], None]) -> None:
        got.extend(site.stream(function))

    def die(emit: Callable[[Any], None]) -> None:
        emit(1)
        os._exit(0)

    with pytest.raises(SiteStepError, match="without an answer"):
        drain(die)
    assert got == [1]
