"""The launch configuration of a manager: what the operator decides, which is where things are and who founded them.

It is untrusted. The founders in it are covered by the manager's evidence and by entry 0 of its log; everything else
concerns availability only.
"""

from __future__ import annotations

import os

from secfl.errors import ConfigError
from secfl.protocol.message import Message
from secfl.protocol.public import Founder

__all__ = ["MAX_CONFIG", "LaunchConfig", "read_config"]

MAX_CONFIG = 1024 * 1024
"""Largest launch configuration, in bytes."""


class LaunchConfig(Message):
    """What the operator passes.

    Attributes:
        listen: `address:port`.
        founders: the founding parties.
        state_dir: directory for the store.
        collateral: a trust bundle, or a directory of them.
        verifier_processes: how many evidence verifiers run beside the manager.
    """

    listen: str
    founders: tuple[Founder, ...]
    state_dir: str
    collateral: str
    verifier_processes: int


def read_config(descriptor: int) -> LaunchConfig:
    """Read the configuration from a descriptor to its end.

    Raises:
        ConfigError: `launch.no_config`.
        EncodingError: `message.malformed`, `message.not_canonical` or `json.too_large`.
    """
    data = bytearray()
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        while len(data) <= MAX_CONFIG and (part := os.read(descriptor, 65536)):
            data += part
    except OSError as error:
        raise ConfigError("launch.no_config", "there is no launch configuration at this descriptor") from error
    return LaunchConfig.decode(bytes(data), max_bytes=MAX_CONFIG)
