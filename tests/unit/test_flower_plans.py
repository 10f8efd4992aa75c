"""Launch plans, peers, progress and processes: the parts of the engine adapter that need no running Flower."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto import strict_json
from secfl.errors import ConfigError, EncodingError, EngineError
from secfl.federation.flower import launch
from secfl.federation.flower.arguments import parse_arguments, parse_assignments
from secfl.federation.flower.launch import AggregatorLaunch, TrainerLaunch
from secfl.federation.flower.peers import PeerFile, parse_peers
from secfl.federation.flower.plain_keys import make_keys
from secfl.federation.flower.progress import PendingSignal, ProgressWriter, weighted_mean

KEYS = st.from_regex(r"[a-z0-9_-]{1,9}", fullmatch=True)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\"'\\")).filter(
    str.isprintable
)
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)

AGGREGATOR = AggregatorLaunch(
    app_directory="/app", app_hash="ab" * 32, run_config={"rate": 0.5, "name": "a b", "n": 3, "flag": True},
    sites=("cleveland", "hungary"), root_certificate="/root.pem", certificate="/server.pem",
    private_key="/server.key", work_directory="/model", run_directory="/run/secfl", port=8123,
)  # fmt: skip
TRAINER = TrainerLaunch(
    app_directory="/app", app_hash="ab" * 32, run_config={}, node_config={"data-path": "/data/records.npz"},
    root_certificate="/root.pem", node_key="/node", sidecar_port=9443, work_directory="/tmp/work", port=9095,
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_configuration_survives_the_command_line(config: dict[str, bool | int | float | str]) -> None:
    """Every value comes back with its type, from our parser and from Flower's."""
    from flwr.common.config import parse_config_args

    texts = launch.assignments(config)
    for parsed in (parse_assignments(texts), parse_config_args([" ".join(texts)])):
        assert parsed == config
        assert {k: type(v) for k, v in parsed.items()} == {k: type(v) for k, v in config.items()}


@pytest.mark.parametrize("value", ['a"b', "a'b", "a\\b", "a\nb", float("nan"), float("inf")])
def test_values_that_flower_would_misread_are_refused(value: str | float) -> None:
    """Quotes, backslashes, control characters and non-finite numbers are errors, not other values."""
    with pytest.raises(ConfigError, match=r"engine\.config_value"):
        launch.assignments({"k": value})


@pytest.mark.parametrize("text", ["k", "=1", "k=", "k=[1]", "k=1\nj=2", "k=2020-01-01", "k={a=1}"])
def test_malformed_assignments_are_refused(text: str) -> None:
    """Only scalars are taken, one a text."""
    with pytest.raises(ConfigError, match=r"engine\.config_value"):
        parse_assignments([text])


def test_a_key_that_is_set_twice_is_refused() -> None:
    """The last value does not silently win."""
    with pytest.raises(ConfigError, match=r"engine\.config_twice"):
        parse_assignments(["k=1", "k=2"])


@pytest.mark.parametrize("plan", [AGGREGATOR, TRAINER])
def test_command_lines_parse_to_their_plan(plan: AggregatorLaunch | TrainerLaunch) -> None:
    """What the policy generator writes is what the program understands."""
    python, isolated, *_, module, party = plan.command("/opt/python/bin/python3")[:6]
    assert (python, isolated, module) == ("/opt/python/bin/python3", "-I", "secfl.federation.flower")
    assert parse_arguments(plan.command("python")[5:]) == plan
    assert party in {"aggregator", "trainer"}


@pytest.mark.parametrize("missing", ["--app-hash", "--root-certificate", "--node-key", "--sidecar-port"])
def test_no_pin_and_no_key_is_optional(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command line without one of them is refused by the parser."""
    arguments = TRAINER.command("python")[5:]
    at = arguments.index(missing)
    with pytest.raises(SystemExit):
        parse_arguments(arguments[:at] + arguments[at + 2 :])
    assert missing in capsys.readouterr().err


def test_environment_keeps_flower_inside() -> None:
    """The environment that we give passes; leaving out a switch or adding a proxy does not."""
    good = launch.environment("/home")
    launch.check_environment(good)
    for name in (*launch.REQUIRED_ENVIRONMENT, "FLWR_HOME"):
        with pytest.raises(ConfigError, match=r"engine\.environment"):
            launch.check_environment({k: v for k, v in good.items() if k != name})
    for name in ("HTTPS_PROXY", "all_proxy", "FLWR_DATABASE"):
        with pytest.raises(ConfigError, match=r"engine\.environment"):
            launch.check_environment({**good, name: "x"})


def test_fl_27_rules_let_no_trainer_register_or_administer() -> None:
    """Only Fleet routes are listed, and neither registration nor its withdrawal."""
    rules = launch.gateway_rules()
    assert all(text.startswith("POST /v1/fleet/") for text in rules.allow)
    assert not any("register-node" in text for text in rules.allow)


def peers_bytes(tmp_path: Path, **fields: object) -> bytes:
    """A peers file with one valid peer, with fields replaced."""
    key = make_keys(tmp_path, ["a"]).node_public["a"]
    return strict_json.encode({"peers": [{"site": "a", "node_key": key, "lease_until": 100, **fields}]})


@pytest.mark.parametrize(
    "defect",
    [{"site": "../a"}, {"site": ""}, {"site": ".a"}, {"site": 3}, {"lease_until": "9"}, {"lease_until": True},
     {"node_key": "ssh-rsa AAAA"}, {"node_key": 1}, {"extra": 1}],
)  # fmt: skip
def test_malformed_peers_are_an_error(tmp_path: Path, defect: dict[str, object]) -> None:
    """A peer that cannot be understood is never skipped."""
    with pytest.raises(ConfigError, match=r"engine\.(peers_malformed|node_key)"):
        parse_peers(peers_bytes(tmp_path, **defect))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"peers":{}}', b'{"peers":[],"more":1}', b'{"peers":[1]}'])
def test_other_documents_are_an_error(data: bytes) -> None:
    """Neither an empty file nor another shape is an empty list."""
    with pytest.raises((ConfigError, EncodingError)):
        parse_peers(data)


def test_one_key_is_one_peer(tmp_path: Path) -> None:
    """Two sites cannot share a node key, nor can a site be listed twice."""
    (entry,) = strict_json.decode(peers_bytes(tmp_path))["peers"]
    for other in (entry, {**entry, "site": "b"}):
        with pytest.raises(ConfigError, match=r"engine\.peers_malformed"):
            parse_peers(strict_json.encode({"peers": [entry, other]}))


def test_fl_01_a_lapsed_lease_is_no_peer(tmp_path: Path) -> None:
    """The live view drops a peer at the second at which its lease ends, and follows the file."""
    clock = [99.0]
    path = tmp_path / "peers.json"
    peers = PeerFile(path, now=lambda: clock[0])
    assert peers.live() == {}
    path.write_bytes(peers_bytes(tmp_path))
    assert [peer.site for peer in peers.live().values()] == ["a"]
    clock[0] = 100.0
    assert peers.live() == {}
    assert len(peers.all()) == 1
    path.unlink()
    assert peers.all() == ()


def test_means_are_flowers_to_the_bit() -> None:
    """The progress metrics equal what Flower's own strategy computes from the same replies."""
    from flwr.app import MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

    replies = [{"num-examples": n, "auc": 0.1 * n, "loss": 1 / n} for n in (61, 58, 40, 25)]
    flower = aggregate_metricrecords([RecordDict({"m": MetricRecord(dict(r))}) for r in replies], "num-examples")
    assert {k: v.hex() for k, v in weighted_mean(replies).items()} == {k: float(v).hex() for k, v in flower.items()}
    assert weighted_mean([{"auc": 1.0}]) == {}
    assert weighted_mean([{"auc": 1.0, "num-examples": float("nan")}]) == {}


def fill(writer: ProgressWriter) -> None:
    """Write more lines than a pipe takes."""
    for number in range(10_000):
        writer.write(number, "train", {}, [])


def test_progress_goes_to_a_pipe_whose_reader_is_late(tmp_path: Path) -> None:
    """Lines are canonical JSON and wait in the pipe; a pipe that nobody empties is an error, not a hang."""
    path = tmp_path / "progress"
    os.mkfifo(path)
    with ProgressWriter(path) as writer:
        writer.write(1, "train", {"auc": 0.5}, ["a", "b"])
        with path.open("rb") as reader:
            line = reader.readline()
        assert strict_json.decode(line[:-1]) == {
            "round": 1, "phase": "train", "metrics": {"auc": "0x1.0000000000000p-1"}, "replies": ["a", "b"],
        }  # fmt: skip
        with pytest.raises(EngineError, match=r"engine\.progress_unread"):
            fill(writer)


def test_fl_21_metric_names_cannot_carry_much(tmp_path: Path) -> None:
    """A line is bounded: an app cannot smuggle records out in names of metrics."""
    with ProgressWriter(tmp_path / "progress") as writer, pytest.raises(EngineError, match=r"engine\.progress_line"):
        writer.write(1, "train", {"x" * 5000: 1.0}, [])


def test_the_pending_signal_changes_each_time(tmp_path: Path) -> None:
    """Each batch replaces the file by another one."""
    signal_ = PendingSignal(tmp_path / "pending")
    seen = set()
    for _ in range(3):
        signal_.raise_()
        seen.add((tmp_path / "pending").read_text())
    assert seen == {"1\n", "2\n", "3\n"}


FAMILY = """
import os, sys, time
from secfl.errors import EngineError
from secfl.federation.flower.process import Family
def refuse(): raise EngineError("engine.test", "refused")
def talk(): print("hello", flush=True); time.sleep(60)
def stubborn():
    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print("deaf", flush=True); time.sleep(60)
family = Family()
lines = []
family.spawn("refuse", refuse)
family.spawn("talk", talk, lines.append)
family.spawn("deaf", stubborn, lines.append)
ended = []
while len(lines) < 2 or not ended: ended += family.wait(0.1)
print(sorted(lines), [(e.name, e.status, e.lines) for e in ended])
start = time.monotonic(); family.stop(); print(time.monotonic() - start < 10)
try: os.waitpid(-1, os.WNOHANG)
except ChildProcessError: print("none left")
"""


def test_a_family_reports_ends_and_stops_completely() -> None:
    """Output arrives by line, an error's code is the status, and stopping takes a deaf child along."""
    done = subprocess.run([sys.executable, "-c", FAMILY], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == [
        "['deaf', 'hello'] [('refuse', 18, ('refuse: engine.test: refused',))]", "True", "none left",
    ], done.stderr  # fmt: skip


def test_a_familys_children_die_with_their_parent() -> None:
    """A killed parent leaves no child behind."""
    code = (
        "import time\nfrom secfl.federation.flower.process import Family\n"
        "print(Family().spawn('a', lambda: time.sleep(60)), flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    status = Path(f"/proc/{child}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)
