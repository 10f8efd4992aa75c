"""Rogues at the edge of a running federation: what each must be refused for, and that the federation goes on."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federation_world import AGGREGATOR, APP, OWNER, ROGUE, SITES, running, small_federation
from secfl.cli.demo import adversary
from secfl.cli.enclaves import Entry, entry_of, prepare_host
from secfl.cli.harness import MANAGER, MANAGER_PORT, Harness, Service
from secfl.cli.simulated import create_platform, create_vendor, run_platform
from secfl.cli.study_plan import GATEWAY_PORT, HandedOver, assemble, draft_policy
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import Validity, make_ca
from secfl.linux.images import pack_image
from secfl.policy.version import PolicyVersion
from secfl.tee.simulated.requests import EnclaveCommand
from secfl.volume.image_manifest import Mode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
WAITING, MISSING = SITES


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    """An aggregator and one of two trainers run, so that nothing trains until the last test."""
    with small_federation() as federation:
        running(federation, AGGREGATOR, AGGREGATOR)
        running(federation, f"trainer-{WAITING}", WAITING)
        yield federation


def host_of(harness: Harness, name: str, *, code: Path | None = None, cohort: str = MISSING) -> Path:
    """A host directory of the rogue's with sealed volumes that it got hold of."""
    host = harness.sites[ROGUE].home / f"host-{name}"
    shutil.copytree(code or harness.sites[OWNER].home / "sealed", host / "volumes/code")
    shutil.copytree(harness.sites[cohort].home / "sealed", host / "volumes/cohort")
    prepare_host(harness._socket(ROGUE), host)
    return host


def launched(harness: Harness, host: Path, **changes: Any) -> dict[str, tuple[str, str]]:
    """Start as the missing trainer; returns what it was refused for: rule, expected, actual."""
    return refusal(harness.start(f"trainer-{MISSING}", ROGUE, host, {"site": MISSING, **changes}))


def refusal(service: Service) -> dict[str, tuple[str, str]]:
    """The findings of a service that was not started."""
    assert service.wait(timeout=60) == 125
    failure = service.failure()
    assert failure is not None
    assert not {phase["event"] for phase in service.phases()} & {"attested", "opened", "launched"}
    findings = {rule: (expected, actual) for rule, expected, actual, _ in failure["findings"]}
    return findings or {failure["code"]: ("", failure["message"])}


def changed_app(harness: Harness, name: str, file: str, old: str, new: str) -> Path:
    """The code with one line changed, sealed by the rogue."""
    folder = harness.sites[ROGUE].home / name
    shutil.copytree(APP, folder / "plain", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    source = folder / "plain" / file
    assert source.read_text().count(old) == 1
    source.write_text(source.read_text().replace(old, new))
    pack_image(folder / "plain", folder / "sealed", mode=Mode.ENCRYPTED, key=os.urandom(32))
    return folder / "sealed"


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("client", "heart/client.py", "from heart import task", "from heart import task; print(task)"),
        ("strategy", "heart/server.py", "np.savez(", "print() or np.savez("),
        ("defaults", "pyproject.toml", "[tool.flwr.app.config]", "[tool.flwr.app.config]\nleak = true"),
    ],
)
def test_fl_29_code_that_differs_in_one_line_is_refused(
    harness: Harness, name: str, file: str, old: str, new: str
) -> None:
    """Changed client, strategy, model or defaults are another root than the policy names."""
    findings = launched(harness, host_of(harness, name, code=changed_app(harness, f"app-{name}", file, old, new)))
    expected, actual = findings["appraisal.roots"]
    assert expected != actual
    assert "code=" in actual


def test_fl_29_a_changed_run_configuration_is_another_policy(harness: Harness) -> None:
    """A service started for a policy with another run configuration is refused: those bytes have no vote."""
    changed = replace(harness.plan, run_config={**harness.plan.run_config, "num-rounds": 99})
    policy = assemble(draft_policy(changed), HandedOver(harness.base / "handed-over"))
    wanted = PolicyVersion.read(policy).hash.hex()
    findings = launched(harness, host_of(harness, "run-config"), policy_hash=wanted)
    assert findings["appraisal.policy_not_in_force"] == (harness.config("x", ROGUE).policy_hash, wanted)


def test_fl_02_the_records_of_another_hospital_are_refused(harness: Harness) -> None:
    """Right code with another data set is refused by its digest."""
    expected, actual = launched(harness, host_of(harness, "records", cohort=WAITING))["appraisal.roots"]
    assert expected.split(",")[0] == actual.split(",")[0]
    assert expected != actual


def test_ev_13_the_right_code_on_another_machine_is_refused(harness: Harness) -> None:
    """A copy of the trainer with the true code and records is refused on a platform that the policy does not list."""
    assert set(launched(harness, host_of(harness, "machine"))) == {"appraisal.platform_not_listed"}


@pytest.mark.parametrize("taken", [AGGREGATOR, f"trainer-{WAITING}"])
def test_ev_34_a_second_instance_elsewhere_does_not_displace_the_first(harness: Harness, taken: str) -> None:
    """A running service cannot be taken over from another machine."""
    host = host_of(harness, f"second-{taken}", cohort=WAITING)
    site = AGGREGATOR if taken == AGGREGATOR else WAITING
    service = harness.start(taken, ROGUE, host, {"site": site, "volumes": {}})
    assert "appraisal.platform_not_listed" in refusal(service)
    live = {entry["service"]: entry["site"] for entry in harness.parties[OWNER].status("heart")["services"]}
    assert live[taken] == site


@pytest.mark.parametrize("row", ["own vendor", "true platform, own vendor's collateral"])
def test_ev_28_a_quote_of_another_vendor_root_is_refused(harness: Harness, row: str) -> None:
    """EV-04, EV-28: a simulated platform under a root of the rogue's own proves nothing, whatever it measures."""
    site, now = harness.sites[ROGUE], int(time.time())
    base = harness.base / f"own-{len(row)}"
    base.mkdir(mode=0o755)
    create_vendor(base / "vendor", now=now)
    machine = create_platform(base / "platform", base / "vendor", site=MISSING, tee="tdx", now=now)
    assert machine.platform_id.hex() not in harness.policy.decode()
    path = base / "p.sock"
    site.spawn(lambda: run_platform(base / "platform", path, site_user=site.uid), log=base / "log", keep_root=True)
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    true = harness._socket(ROGUE)
    true.rename(true.with_suffix(".aside"))
    try:
        true.symlink_to(path)
        findings = launched(harness, host_of(harness, f"vendor-{len(row)}"))
    finally:
        true.unlink()
        true.with_suffix(".aside").rename(true)
    assert set(findings) <= {"evidence.root", "appraisal.trust_domain"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("preload", {"env": {"LD_PRELOAD": "/host/evil.so"}}),
        ("python path", {"env": {"PYTHONPATH": "/host"}}),
        ("arguments", {"argv": ("-X", "utf8")}),
        ("directory", {"cwd": "/host"}),
    ],
)
def test_ev_31_the_image_started_otherwise_is_refused(harness: Harness, name: str, changes: dict[str, Any]) -> None:
    """Another environment, argument or directory is another measurement, and the manager says which it expected."""
    true = entry_of(harness.image, "shield")
    argv = (true.command.argv[0], *changes.get("argv", ()), *true.command.argv[1:])
    command = EnclaveCommand(argv, {**true.command.env, **changes.get("env", {})}, changes.get("cwd", "/"))
    host = host_of(harness, name.replace(" ", "-"))
    config = harness.config(f"trainer-{MISSING}", MISSING).encode()
    service = harness._launch(name, ROGUE, Entry(true.image, command, true.measurements), config, host)
    expected, actual = refusal(service)["appraisal.measurement"]
    assert expected == true.measurements["tdx"] != actual


def test_ev_08_a_recorded_quote_is_refused(harness: Harness) -> None:
    """Genuine evidence of a running trainer, sent again with a fresh nonce, is bound to another exchange."""
    rows = adversary.recorded_quote(harness, harness.parties[MISSING], f"trainer-{WAITING}")
    assert [row["rule"] for row in rows] == ["binding.mismatch"]


def test_ev_12_swapped_relayed_and_invented_answers_are_refused_by_a_party(harness: Harness) -> None:
    """A hospital that attests a peer refuses another peer's answer, an old one, and a manager that changes the keys."""
    rows = adversary.lies(harness.parties[MISSING], harness.policy, service=f"trainer-{WAITING}", other=AGGREGATOR)
    assert [row["who"] for row in rows] == [
        "swapped trainer",
        "relayed answer",
        "lying manager, other TLS key",
        "lying manager, other sealing key",
    ]


def test_fl_22_the_model_is_not_released_before_the_end(harness: Harness) -> None:
    """While the study runs not even the party that the policy names gets the key."""
    directory = harness.sites[OWNER].home / "sealed"
    answer = harness.parties[OWNER].receive("heart", "model", directory)
    assert answer["code"] == "release.not_ready", answer


def test_fl_27_other_sites_reach_one_port_of_each_service(harness: Harness) -> None:
    """From the rogue's network the aggregator shows its gateway, the manager its service, a trainer nothing."""
    if not harness.sites.isolated:
        pytest.skip("without root all sites share the loopback network")
    places = {name: harness.sites[name].address for name in (MANAGER, AGGREGATOR, WAITING)}

    def scan() -> dict[str, list[int]]:
        return {name: [port for port in range(1, 65536) if _open(address, port)] for name, address in places.items()}

    found = harness.sites[ROGUE].call(scan)
    assert found == {MANAGER: [MANAGER_PORT], AGGREGATOR: [GATEWAY_PORT], WAITING: []}


def _open(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((address, port)) == 0


@pytest.mark.parametrize("certificate", ["none", "of its own"])
def test_fl_01_an_unattested_joiner_gets_nothing_from_the_gateway(
    harness: Harness, tmp_path: Path, certificate: str
) -> None:
    """Without a certificate of the study's own authority no request reaches the engine."""
    tmp_path.chmod(0o755)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate != "none":
        key, now = SigningKey.generate_p256(), int(time.time())
        authority = make_ca(key, name="trainer", validity=Validity(now - 60, now + 3600))
        (tmp_path / "own.pem").write_text(ssl.DER_cert_to_PEM_cert(authority.certificate) + key.to_pem().decode())
        context.load_cert_chain(tmp_path / "own.pem")
    gateway = (harness.sites[AGGREGATOR].address, GATEWAY_PORT)

    def join() -> str:
        try:
            with (
                socket.create_connection(gateway, timeout=5) as raw,
                context.wrap_socket(raw) as connection,
            ):
                connection.sendall(b"POST /api/v0/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                return connection.recv(100).decode(errors="replace")
        except OSError as error:
            return type(error).__name__

    answer = harness.sites[ROGUE].call(join)
    assert not answer.startswith("HTTP/1.1 2"), answer
    assert not answer or "SSL" in answer or "Reset" in answer, answer


def test_zz_the_federation_goes_on_and_releases_to_one_party(harness: Harness) -> None:
    """The missing hospital starts, the study trains and ends well, and only the owner gets the model."""
    harness.run_service(f"trainer-{MISSING}", MISSING)
    lines = list(harness.parties[OWNER].watch("heart", seconds=60))
    assert [line["phase"] for line in lines[:-1]] == ["train", "evaluate"]
    assert lines[-1] == {"exit": 0}
    assert harness.services[AGGREGATOR].wait(timeout=30) == 0
    directory = harness.hand_over_release("model")
    for name in SITES:
        refused = harness.parties[name].receive("heart", "model", directory)
        assert refused["code"] == "release.other_party", refused
    for site, who in ((AGGREGATOR, "operator"), (MANAGER, "administrator")):
        assert adversary.stranger(harness, site, who, directory)
    assert harness.parties[OWNER].receive("heart", "model", directory)["files"]
