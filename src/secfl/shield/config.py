"""The launch configuration: what the operator tells a shield. None of it is trusted.

It says where the manager and the peers can be reached and which service this enclave should be. A wrong value makes
the start fail or is refused by appraisal; it can never weaken a check, since all checks come from the attested answer.
"""

from __future__ import annotations

import re

from pydantic import field_validator

from secfl.protocol.message import Digest, Message, Name

__all__ = ["MAX_CONFIG", "LaunchConfig"]

MAX_CONFIG = 1024 * 1024
_ADDRESS = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}:\d{1,5}\Z|\[[0-9a-f:]+\]:\d{1,5}\Z")


class LaunchConfig(Message):
    """What `secfl run` hands to the enclave.

    Attributes:
        manager: `address:port` of the manager.
        study: the policy's name.
        service: the service to become.
        site: the node id.
        policy_hash: the policy that the operator expects to be in force.
        listen: the site's own address, for ingress ports.
        peers: service name to `address:port` of its ingress, for egress.
        images: name of each read-only volume to its directory below the host directory.
        volumes: the same for each writable volume; made when it is not there.
    """

    manager: str
    study: Name
    service: Name
    site: Name
    policy_hash: Digest
    listen: str
    peers: dict[str, str]
    images: dict[str, str]
    volumes: dict[str, str]

    @field_validator("manager")
    @classmethod
    def _address(cls, value: str) -> str:
        if not _ADDRESS.match(value):
            raise ValueError("address:port is required")
        return value
