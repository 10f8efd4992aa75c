"""Services: what runs, where, proved how, and whom it may talk to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from secfl.policy.fields import (
    AbsolutePath,
    Argument,
    Closed,
    EnvironmentName,
    Loopback,
    Measurement,
    Name,
    PlatformId,
    Port,
    refuse,
    text_type,
    unique,
)

__all__ = ["AllowRule", "Attestation", "Egress", "Hold", "Ingress", "Linger", "Network", "Service"]

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_URL_PATH = r"/[A-Za-z0-9._~/-]{0,200}"
_MAX_HOLD_SECONDS = 25
TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]


def _last_second(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        day = date.fromisoformat(value) if isinstance(value, str) and len(value) == len("2027-03-31") else None
    except ValueError:
        day = None
    if day is None:
        raise refuse("policy.date", 'a day such as "2027-03-31" (in quotes)', "write year, month and day")
    return int(datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC).timestamp())


def _url_path(value: str) -> str:
    if "//" in value or "/../" in f"{value}/" or "/./" in f"{value}/":
        raise refuse("policy.url_path", "a path without empty, `.` or `..` parts", "write the path in its normal form")
    return value


def _allow(value: str) -> str:
    _url_path(value.partition(" ")[2].removesuffix("*"))
    return value


Day = Annotated[
    int, BeforeValidator(_last_second), WithJsonSchema({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"})
]
"""The last second of a day in UTC, written `"2027-03-31"`."""
TrustDomain = Annotated[
    str,
    AfterValidator(
        text_type(
            "hardware:intel|simulated:[0-9a-f]{64}",
            "policy.trust_domain",
            '"hardware:intel" or "simulated:" and the 64 hex digits of its root',
            remedy="name one root of trust",
        )
    ),
]
Advisory = Annotated[
    str, AfterValidator(text_type("INTEL-SA-[0-9]{5}", "policy.advisory", "an advisory such as INTEL-SA-00615"))
]
AllowRule = Annotated[
    str,
    AfterValidator(
        text_type(
            rf"(?:{'|'.join(_METHODS)}) {_URL_PATH}\*?", "policy.allow", 'a method and a path; "*" only at the end'
        )
    ),
    AfterValidator(_allow),
]
UrlPath = Annotated[str, AfterValidator(text_type(_URL_PATH, "policy.url_path", "a path")), AfterValidator(_url_path)]
HeaderName = Annotated[
    str, AfterValidator(text_type("[a-z][a-z0-9-]{0,62}", "policy.header", "a header name in lower case"))
]


class Attestation(Closed):
    """One way to be accepted: all factors must hold.

    Attributes:
        trust_domain: the root under which the evidence must verify.
        tee: kind of environment.
        measurement: accepted code; any one of the list.
        tcb_status: accepted states of the platform's firmware; holds UpToDate.
        advisories: open advisories that are tolerated.
        tolerated_until: last second at which the tolerated statuses and advisories hold.
        minimum_tcb_evaluation: oldest vendor data that may be used; stops its roll-back.
        smt: whether hyper-threading may be on.
    """

    trust_domain: TrustDomain
    tee: Literal["tdx", "sgx"]
    measurement: Annotated[tuple[Measurement, ...], Field(min_length=1, max_length=64), AfterValidator(unique)]
    tcb_status: Annotated[tuple[TcbStatus, ...], Field(min_length=1), AfterValidator(unique)]
    advisories: Annotated[tuple[Advisory, ...], Field(max_length=256), AfterValidator(unique)] = ()
    tolerated_until: Day | None = None
    minimum_tcb_evaluation: Annotated[int, Field(ge=1, le=100_000)]
    smt: Literal["allow", "deny"]


class Hold(Closed):
    """A path whose empty answers are kept back for a while."""

    path: UrlPath
    seconds: Annotated[int, Field(ge=1, le=_MAX_HOLD_SECONDS)]


class Linger(Closed):
    """A path whose answers are delayed a little, so that an engine that polls at fixed steps finds its work done."""

    path: UrlPath
    milliseconds: Annotated[int, Field(ge=1, le=2000)]


class Ingress(Closed):
    """A port on which attested peers reach the program.

    Attributes:
        port: on the site's address.
        to: where the program listens, in its private network.
        peers: services that may connect.
        allow: what they may ask.
        node_key_header: header that must carry the key which the peer's evidence carries.
        hold: empty answers that are kept back.
        linger: answers that are delayed.
        tls_server_ca: authority of the program's own certificate, when it speaks TLS.
    """

    name: Name
    port: Port
    to: Loopback
    peers: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256), AfterValidator(unique)]
    allow: Annotated[tuple[AllowRule, ...], Field(min_length=1, max_length=64), AfterValidator(unique)]
    node_key_header: HeaderName | None = None
    hold: Annotated[tuple[Hold, ...], Field(max_length=16)] = ()
    linger: Annotated[tuple[Linger, ...], Field(max_length=16)] = ()
    tls_server_ca: str | None = None


class Egress(Closed):
    """A listener in the program's network that leads to a peer's ingress.

    Attributes:
        listen: where the program connects to.
        service: the peer.
        ingress: the peer's ingress.
        tls_certificate: certificate that the listener shows to the program.
        tls_key: its key.
    """

    name: Name
    listen: Loopback
    service: Name
    ingress: Name
    tls_certificate: str | None = None
    tls_key: str | None = None


class Network(Closed):
    """All connections that a program may take part in; empty lists allow none."""

    ingress: Annotated[tuple[Ingress, ...], Field(max_length=16)] = ()
    egress: Annotated[tuple[Egress, ...], Field(max_length=256)] = ()


class Service(Closed):
    """A program under attestation.

    Attributes:
        image_name: its volumes and injected files.
        command: program and arguments.
        environment: the only variables that the program sees.
        pwd: working directory.
        attestation: alternatives, one of which must fit.
        platforms: machines on which it may run.
        network: whom it may talk to.
        console: whether the site's operator sees its output.
    """

    name: Name
    image_name: Name
    command: Annotated[tuple[Argument, ...], Field(min_length=1, max_length=256)]
    environment: Annotated[Mapping[EnvironmentName, Argument], Field(max_length=256)] = {}
    pwd: AbsolutePath
    attestation: Annotated[tuple[Attestation, ...], Field(min_length=1, max_length=16)]
    platforms: Annotated[tuple[PlatformId, ...], Field(min_length=1, max_length=256), AfterValidator(unique)]
    network: Network
    console: Literal["pass", "suppress"]
