"""The network of one service: a private namespace for the program, and one process for each way in or out.

The gateway listens on the site's address and reaches into the namespace; the sidecar listens inside and reaches out.
Both hold the enclave's identity; the program holds neither key nor route. Each process ends when the shield closes its
control line, and dies with the shield.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import Usage, to_pem
from secfl.errors import ConfigError
from secfl.linux.fuse_mount import fork_server
from secfl.linux.https_client import split_address
from secfl.linux.namespaces import NetworkNamespace
from secfl.protocol.payload import Egress, Ingress, ServicePayload
from secfl.protocol.service import Peer
from secfl.shield.channel import ChannelSetup
from secfl.shield.control import control_line
from secfl.shield.gateway import GatewaySetup, run_gateway
from secfl.shield.identity import Identity, PeerRules, attested_peers
from secfl.shield.process_line import ProcessLine
from secfl.shield.rules import Rules
from secfl.shield.run_directory import RunDirectory
from secfl.shield.sidecar import SidecarSetup, run_sidecar

__all__ = ["NetworkShield", "Wire", "identity_of"]

_BACKLOG = 128
"""Connections that may wait, until the gateway runs and later."""
_PENDING = "pending"
"""File of the run directory by which a program says that messages wait; held requests are then asked again."""


def identity_of(certificates: Sequence[bytes], key: SigningKey) -> Identity:
    """Make the TLS identity of a leaf certificate and the enclave's key."""
    return Identity(b"".join(to_pem(certificate) for certificate in certificates[:1]), key.to_pem())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What the processes of one service need.

    Attributes:
        payload: the service's configuration.
        identity: the present leaf and key.
        sealing_key: the attested sealing key.
        listen: the site's own address.
        peers: service to `address:port` of its ingress.
    """

    payload: ServicePayload
    identity: Identity
    sealing_key: SealingKey
    listen: str
    peers: Mapping[str, str]


class NetworkShield:
    """All gateway and sidecar processes of one service."""

    def __init__(self, network: NetworkNamespace, wire: Wire) -> None:
        self._network = network
        self._wire = wire
        self._gateways: list[ProcessLine] = []
        self._sidecars: list[ProcessLine] = []
        self._outside: list[tuple[Ingress, socket.socket]] = []
        self._inside: list[tuple[Egress, str, socket.socket]] = []
        self.children: dict[str, int] = {}

    def listen(self) -> None:
        """Open all listeners before the program exists: it finds them from its first moment, or is not started.

        Raises:
            ConfigError: `network.no_peer_address` or `network.listen`.
            StateError: `network.address_in_use` or `linux.call_failed`.
        """
        wire = self._wire
        for ingress in wire.payload.ingress:
            try:
                listener = socket.create_server((wire.listen, ingress.port), backlog=_BACKLOG)
            except OSError as error:
                raise ConfigError(
                    "network.listen", f"cannot listen on {wire.listen}:{ingress.port}: {error.strerror}"
                ) from error
            self._outside.append((ingress, listener))
        for egress in wire.payload.egress:
            address = wire.peers.get(egress.service)
            if address is None:
                raise ConfigError(
                    "network.no_peer_address", f"no address for {egress.service}", hint="see the site file"
                )
            self._inside.append((egress, address, self._network.listen_inside(*split_address(egress.listen))))

    def start(self, run_directory: RunDirectory) -> None:
        """Fork the processes; call it before this process starts threads.

        Raises:
            EncodingError: a malformed rule.
            OSError: no process or socket is left.
        """
        for ingress, listener in self._outside:
            self._start_gateway(ingress, listener, run_directory)
        for egress, address, listener in self._inside:
            self._start_sidecar(egress, address, listener)

    def update_identity(self, identity: Identity) -> None:
        """Give a renewed certificate to all processes.

        Raises:
            StateError: `network.process_hung`.
        """
        message = control_line("identity", certificate=identity.certificate.decode(), key=identity.key.decode())
        for line in (*self._gateways, *self._sidecars):
            line.tell(message)

    def update_peers(self, peers: Iterable[Peer]) -> None:
        """Give the manager's latest word on leases to the gateways.

        Raises:
            StateError: `network.process_hung`.
        """
        entries = [
            {"site": peer.site, "node_key": peer.node_key or "", "lease_until": peer.lease_until} for peer in peers
        ]
        message = control_line("leases", peers=entries)
        for line in self._gateways:
            line.tell(message)

    def events(self) -> list[dict[str, str]]:
        """Read what the processes have reported since the last call: refused and dropped peers, for the operator.

        Raises:
            EncodingError: `network.process_malformed`.
        """
        return [event for line in (*self._gateways, *self._sidecars) for event in line.events()]

    def close(self) -> None:
        """Close the control lines; the processes end."""
        for line in (*self._gateways, *self._sidecars):
            line.close()

    def _start_gateway(self, ingress: Ingress, listener: socket.socket, run_directory: RunDirectory) -> None:
        wire, payload = self._wire, self._wire.payload
        setup = GatewaySetup(
            identity=wire.identity,
            sealing_key=wire.sealing_key,
            study_ca=to_pem(payload.ca_certificate),
            authenticate=attested_peers(payload.ca_certificate, study=payload.study, usage=Usage.CLIENT),
            peers=PeerRules(frozenset(ingress.peers), bytes.fromhex(payload.policy_hash)),
            rules=Rules.parse(
                ingress.allow,
                hold={entry.path: entry.seconds for entry in ingress.hold},
                linger={entry.path: entry.milliseconds for entry in ingress.linger},
            ),
            node_key_header=ingress.node_key_header,
            upstream=ingress.to,
            upstream_ca=None if ingress.tls_server_ca is None else ingress.tls_server_ca.encode(),
            is_admitted=run_directory.is_admitted,
            pending=lambda: run_directory.signature(_PENDING),
        )

        def upstream_socket(address: tuple[int, int, *tuple[object, ...]]) -> socket.socket:
            return self._network.create_socket(socket.AddressFamily(address[0]), socket.SocketKind(address[1]))

        line = self._fork(
            f"gateway {ingress.name}",
            listener,
            lambda control: run_gateway(setup, listener, control, socket_factory=upstream_socket),
            keep=(run_directory.fileno(), self._network.fileno()),
        )
        self._gateways.append(line)

    def _start_sidecar(self, egress: Egress, address: str, listener: socket.socket) -> None:
        wire, payload = self._wire, self._wire.payload
        channel = ChannelSetup(
            gateway=address,
            sealing_key=wire.sealing_key,
            study_ca=to_pem(payload.ca_certificate),
            authenticate=attested_peers(payload.ca_certificate, study=payload.study, usage=Usage.SERVER),
            peers=PeerRules(frozenset({egress.service}), bytes.fromhex(payload.policy_hash)),
        )
        program_tls = None
        if egress.tls_certificate is not None and egress.tls_key is not None:
            program_tls = Identity(egress.tls_certificate.encode(), egress.tls_key.encode())
        setup = SidecarSetup(channel=channel, identity=wire.identity, program_tls=program_tls)
        line = self._fork(
            f"sidecar {egress.name}", listener, lambda control: run_sidecar(setup, listener, control), keep=()
        )
        self._sidecars.append(line)

    def _fork(
        self, name: str, listener: socket.socket, serve: Callable[[socket.socket], None], *, keep: Sequence[int]
    ) -> ProcessLine:
        ours, theirs = socket.socketpair()
        pid = fork_server(lambda: serve(theirs), keep=(listener.fileno(), theirs.fileno(), *keep))
        theirs.close()
        listener.close()
        self.children[name] = pid
        return ProcessLine(name, ours)
