"""One enclave as the platform keeps it, and the answers to its own questions.

The channel belongs to exactly one enclave: a quote is signed over the measurement that the platform itself took of
that child, whatever the request says, and never for anyone else.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secfl.attestation.measurement import sgx_measurement, tdx_measurement
from secfl.crypto.encoding import from_hex, to_base64url
from secfl.errors import EncodingError, SecflError
from secfl.linux.packets import Packet
from secfl.tee.attester import REPORT_DATA_BYTES
from secfl.tee.simulated.launch import LaunchedEnclave
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.tee.simulated.requests import EnclaveCommand

__all__ = ["Enclave", "answer_enclave", "measure"]

_MAX_LABEL = 256


@dataclass(slots=True)
class Enclave:
    """State of one launch.

    Attributes:
        name: random identifier, for the operator.
        measurement: what the platform measured before it launched.
        launched: the ends of the launch.
        state: starting, running, exited or failed.
        code: exit code, once exited.
        requester: whoever waits for the launch to succeed.
        waiters: whoever waits for the end.
    """

    name: str
    measurement: bytes
    launched: LaunchedEnclave
    state: str = "starting"
    code: int | None = None
    requester: socket.socket | None = None
    waiters: list[socket.socket] = field(default_factory=list)


def measure(kind: str, image_root: bytes, command: EnclaveCommand) -> bytes:
    """Return the measurement of a launch: image, arguments, environment and directory (EV-31).

    Raises:
        EncodingError: `json.not_canonical`.
    """
    function = {"sgx": sgx_measurement, "tdx": tdx_measurement}[kind]
    return function(image_root, command.argv, command.env, command.cwd)


def answer_enclave(machine: SimulatedMachine, kind: str, measurement: bytes, packet: Packet) -> dict[str, str]:
    """Answer one packet of an enclave's channel."""
    try:
        return _answer(machine, kind, measurement, packet.message)
    except SecflError as error:
        return {"error": error.code}


def _answer(machine: SimulatedMachine, kind: str, measurement: bytes, message: Mapping[str, Any]) -> dict[str, str]:
    operation = message.get("op")
    if operation == "info" and set(message) == {"op"}:
        return {"kind": kind, "platform_id": machine.platform_id.hex()}
    if operation == "quote" and set(message) == {"op", "report_data"}:
        report_data = from_hex(_text(message["report_data"]), size=REPORT_DATA_BYTES)
        return {"quote": to_base64url(machine.quote(kind, measurement, report_data).blob)}
    if operation == "seal_key" and set(message) == {"op", "label"}:
        return {"key": to_base64url(machine.sealing_key(measurement, _text(message["label"])))}
    raise EncodingError("platform.request_malformed", "unknown operation or members")


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_LABEL:
        raise EncodingError("platform.request_malformed", "a member is a short text")
    return value
