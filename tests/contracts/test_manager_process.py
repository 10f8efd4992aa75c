"""The manager as a process: descriptors 3 and 4, the ready line, kill -9 and restart, orderly end."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from secfl.crypto import strict_json
from secfl.crypto.encoding import to_base64url
from secfl.linux.https_client import HttpsClient, unverified_certificate
from secfl.manager.config import LaunchConfig
from secfl.protocol.party import PolicyAsk, PolicyReply, Proposal, ProposalReply
from secfl.protocol.public import Founder, Identity, NonceReply
from secfl.tee.bundle import TrustBundle
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.tee.simulated.vendor import Vendor
from secfl.testing.deployment import Member
from secfl.testing.enclaves import KIND, MANAGER_MEASUREMENT, MachineAttester


class Platform:
    """Answers at the other end of descriptor 3 as the simulated platform does."""

    def __init__(self, attester: MachineAttester) -> None:
        self._attester = attester
        self._socket, self.child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while packet := self._socket.recv(65536):
            self._socket.send(strict_json.encode(self._answer(strict_json.decode(packet))))

    def _answer(self, request: dict[str, str]) -> dict[str, str]:
        if request["op"] == "info":
            return {"kind": KIND, "platform_id": self._attester.platform_id.hex()}
        if request["op"] == "seal_key":
            return {"key": to_base64url(self._attester.sealing_key(request["label"]))}
        return {"quote": to_base64url(self._attester.collect(bytes.fromhex(request["report_data"])).blob)}


class Process:
    """A running manager."""

    def __init__(self, config: LaunchConfig, attester: MachineAttester) -> None:
        self._platform = Platform(attester)
        launch = os.memfd_create("launch")
        os.write(launch, config.encode())
        reading, writing = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (self._platform.child.fileno(), launch, writing)]
        actions = [
            (os.POSIX_SPAWN_DUP2, high[0], 3),
            (os.POSIX_SPAWN_DUP2, high[1], 4),
            (os.POSIX_SPAWN_DUP2, high[2], 1),
        ]
        arguments = [sys.executable, "-I", "-B", "-m", "secfl.manager"]
        environment = {"LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
        self.pid = os.posix_spawn(sys.executable, arguments, environment, file_actions=actions)
        for descriptor in (*high, launch, writing):
            os.close(descriptor)
        self._platform.child.close()
        with os.fdopen(reading, "rb") as console:
            self.line = strict_json.decode(console.readline().strip())
        self.address: str = self.line.get("ready", "")

    def client(self) -> HttpsClient:
        """A client that pins what the process shows."""
        pin = hashlib.sha256(unverified_certificate(self.address)).digest()
        return HttpsClient(self.address, certificate_sha256=pin)

    def end(self, number: signal.Signals) -> int:
        """Send a signal and give the exit code."""
        os.kill(self.pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def launch(tmp_path: Path) -> tuple[LaunchConfig, MachineAttester, Member]:
    """A configuration, a platform and a founding party."""
    now = int(time.time())
    vendor = Vendor.create(now)
    member = Member("cleveland")
    trust = tmp_path / "collateral.json"
    trust.write_bytes(TrustBundle(vendor.anchor(), {KIND: vendor.collateral(KIND, now)}).encode())
    config = LaunchConfig(
        listen="127.0.0.1:0",
        founders=(member.founder(),),
        state_dir=str(tmp_path),
        collateral=str(trust),
        verifier_processes=1,
    )
    return config, MachineAttester(SimulatedMachine.enroll(vendor, now=now), MANAGER_MEASUREMENT), member


def test_sv_01_a_killed_manager_continues_where_it_acknowledged(
    launch: tuple[LaunchConfig, MachineAttester, Member],
) -> None:
    """After kill -9 the same identity is back and an acknowledged proposal is still there."""
    config, attester, member = launch
    process = Process(config, attester)
    client = process.client()
    identity = Identity.decode(client.call("identity"))
    policy = (
        b'secfl: "1"\nname: cleveland/thing\nparties:\n- {name: cleveland, signing_key: "%s", recipient_key: "%s"}\n'
        b"access_policy: {update: {require-all: [cleveland]}}\n"
        % (
            to_base64url(member.signing.public.spki).encode(),
            to_base64url(member.recipient.public).encode(),
        )
    )
    document = Proposal(
        deployment_id=identity.deployment_id, name="cleveland/thing", policy=policy, expires=int(time.time()) + 999
    )
    reply = ProposalReply.decode(client.call("policies/propose", member.sign("policies/propose", document)))
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    client.close()
    again = Process(config, attester)
    client = again.client()
    assert Identity.decode(client.call("identity")) == identity
    nonce = NonceReply.decode(client.call("nonces", b"{}")).nonce
    ask = PolicyAsk(deployment_id=identity.deployment_id, nonce=nonce, name="cleveland/thing")
    shown = PolicyReply.decode(client.call("policies/get", member.sign("policies/get", ask)))
    assert set(shown.proposals) == {reply.proposal}
    client.close()
    assert again.end(signal.SIGTERM) == 0


def test_a_manager_with_other_founders_does_not_start(launch: tuple[LaunchConfig, MachineAttester, Member]) -> None:
    """The process says why on its one line and exits with the error's code."""
    config, attester, _ = launch
    assert Process(config, attester).end(signal.SIGTERM) == 0
    stranger: Founder = Member("cleveland").founder()
    refused = Process(config.model_copy(update={"founders": (stranger,)}), attester)
    assert refused.line["error"] == "founders.differ"
    assert os.waitstatus_to_exitcode(os.waitpid(refused.pid, 0)[1]) == 15
