"""The launch configuration: what the operator tells a shield. None of it is trusted.

It says where the manager and the peers can be reached and which service this enclave should be. A wrong value makes
the start fail or is refused by appraisal; it can never weaken a check, since all checks come from the attested answer.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, field_validator, model_validator

from secfl.protocol.message import Digest, Message, Name

__all__ = ["MAX_CONFIG", "Address", "LaunchConfig"]

MAX_CONFIG = 1024 * 1024
_HOST = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}"
_LISTEN = re.compile(rf"{_HOST}\Z")
_ADDRESS = re.compile(rf"{_HOST}:[1-9][0-9]{{0,4}}\Z")


def _address(value: str) -> str:
    if not _ADDRESS.match(value):
        raise ValueError("address:port is required")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""An IPv4 address and a port: a name would let the operator's resolver choose anew at each connection."""


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

    manager: Address
    study: Name
    service: Name
    site: Name
    policy_hash: Digest
    listen: str
    peers: dict[Name, Address]
    images: dict[Name, str]
    volumes: dict[Name, str]

    @field_validator("listen")
    @classmethod
    def _own_address(cls, value: str) -> str:
        if not _LISTEN.match(value):
            raise ValueError("an IPv4 address is required")
        return value

    @model_validator(mode="after")
    def _one_directory_each(self) -> Self:
        # With two directories for one name, the evidence would state one and the start would open the other.
        if set(self.images) & set(self.volumes):
            raise ValueError("a volume is either an image or writable")
        return self
