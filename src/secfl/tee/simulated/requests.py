"""Requests to the platform process: strict messages with descriptors beside them.

Files travel as open descriptors, never as names: the requester proves its own access to them, a platform that runs as
root opens nothing on its behalf, and what was measured cannot be swapped for what a name means later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secfl.errors import EncodingError
from secfl.linux.packets import Packet

__all__ = [
    "ID_BYTES",
    "MAX_CONFIG_BYTES",
    "EnclaveCommand",
    "LaunchFiles",
    "LaunchRequest",
    "ListRequest",
    "Request",
    "StopRequest",
    "WaitRequest",
    "parse_request",
]

ID_BYTES = 16
MAX_CONFIG_BYTES = 1 << 20
"""Largest launch configuration, in bytes."""
_MAX_ITEMS = 256
_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class EnclaveCommand:
    """What runs in the image; all of it is measured."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str


@dataclass(frozen=True, slots=True)
class LaunchFiles:
    """The descriptors of a launch request, in the order in which they travel."""

    manifest: int
    data: int
    host: int
    config: int
    stdout: int
    stderr: int

    def all(self) -> tuple[int, ...]:
        """Return them in that order."""
        return (self.manifest, self.data, self.host, self.config, self.stdout, self.stderr)


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """Start an enclave."""

    command: EnclaveCommand
    files: LaunchFiles


@dataclass(frozen=True, slots=True)
class ListRequest:
    """Name all enclaves."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Ask an enclave to end, or end it."""

    enclave: str
    kill: bool


@dataclass(frozen=True, slots=True)
class WaitRequest:
    """Answer when the enclave has ended."""

    enclave: str


Request = LaunchRequest | ListRequest | StopRequest | WaitRequest


def parse_request(packet: Packet) -> Request:
    """Check a request and return it.

    Raises:
        EncodingError: `platform.request_malformed`; the descriptors are still the caller's to close.
    """
    message = packet.message
    operation = message.get("op")
    if operation == "launch":
        return _launch(message, packet.descriptors)
    if packet.descriptors:
        raise _malformed("only a launch carries descriptors")
    if operation == "list" and set(message) == {"op"}:
        return ListRequest()
    if operation == "stop" and set(message) == {"op", "id", "kill"} and isinstance(message["kill"], bool):
        return StopRequest(_identifier(message["id"]), message["kill"])
    if operation == "wait" and set(message) == {"op", "id"}:
        return WaitRequest(_identifier(message["id"]))
    raise _malformed("unknown operation or members")


def _launch(message: Mapping[str, Any], descriptors: tuple[int, ...]) -> LaunchRequest:
    if set(message) != {"op", "argv", "env", "cwd"} or len(descriptors) != 6:
        raise _malformed("a launch has argv, env, cwd and six descriptors")
    argv, env, cwd = message["argv"], message["env"], message["cwd"]
    if not isinstance(argv, list) or not 0 < len(argv) <= _MAX_ITEMS or not all(_text(item) for item in argv):
        raise _malformed("argv is a list of texts")
    if not argv[0].startswith("/"):
        raise _malformed("argv starts with an absolute path")
    if not isinstance(env, dict) or len(env) > _MAX_ITEMS or not all(_variable(*item) for item in env.items()):
        raise _malformed("env maps names to texts")
    if not _text(cwd) or not cwd.startswith("/"):
        raise _malformed("cwd is an absolute path")
    return LaunchRequest(EnclaveCommand(tuple(argv), env, cwd), LaunchFiles(*descriptors))


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and "\0" not in value


def _variable(name: str, value: object) -> bool:
    return _text(name) and name != "" and "=" not in name and _text(value)


def _identifier(value: object) -> str:
    if not isinstance(value, str) or len(value) != 2 * ID_BYTES or not set(value) <= set("0123456789abcdef"):
        raise _malformed("an enclave id is lower-case hex")
    return value


def _malformed(message: str) -> EncodingError:
    return EncodingError("platform.request_malformed", message)
