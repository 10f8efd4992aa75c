"""The network of one service: a private namespace for the program, and one process for each way in or out.

The gateway listens on the site's address and reaches into the namespace; the sidecar listens inside and reaches out.
Both hold the enclave's identity; the program holds neither key nor route. Each process ends when the shield closes its
control line, and dies with the shield.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from secfl.crypto import strict_json
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
from secfl.shield.rules import Rules
from secfl.shield.run_directory import RunDirectory
from secfl.shield.sidecar import SidecarSetup, run_sidecar

__all__ = ["NetworkShield", "Wire", "identity_of"]

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
    peers: dict[str, str]


class NetworkShield:
    """All gateway and sidecar processes of one service."""

    def __init__(self, network: NetworkNamespace) -> None:
        self._network = network
        self._lines: list[socket.socket] = []
        self._unread: list[bytes] = []
        self._inside: list[tuple[Egress, socket.socket]] = []
        self.children: dict[str, int] = {}

    def listen(self, egress: Iterable[Egress]) -> None:
        """Open the sidecars' listeners, so that the program finds them from its first moment.

        Raises:
            StateError: `linux.call_failed`.
        """
        for entry in egress:
            host, port = split_address(entry.listen)
            self._inside.append((entry, self._network.listen_inside(host, port)))

    def start(self, wire: Wire, run_directory: RunDirectory) -> None:
        """Fork the processes; call it before this process starts threads.

        Raises:
            ConfigError: `network.no_peer_address`, `network.listen`, or a malformed rule.
        """
        for ingress in wire.payload.ingress:
            self._start_gateway(wire, ingress, run_directory)
        for egress, listener in self._inside:
            self._start_sidecar(wire, egress, listener)

    def update_identity(self, identity: Identity) -> None:
        """Give a renewed certificate to all processes."""
        line = control_line("identity", certificate=identity.certificate.decode(), key=identity.key.decode())
        self._tell(line)

    def update_peers(self, peers: Iterable[Peer]) -> None:
        """Give the manager's latest word on leases to the gateways."""
        entries = [
            {"site": peer.site, "node_key": peer.node_key or "", "lease_until": peer.lease_until} for peer in peers
        ]
        self._tell(control_line("leases", peers=entries), gateways_only=True)

    def events(self) -> list[dict[str, str]]:
        """Read what the processes have reported since the last call: refused and dropped peers, for the operator."""
        events: list[dict[str, str]] = []
        for index, line in enumerate(self._lines):
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                while data := line.recv(65536, socket.MSG_DONTWAIT):
                    self._unread[index] += data
            *lines, self._unread[index] = self._unread[index].split(b"\n")
            events += [strict_json.decode(entry) for entry in lines]
        return events

    def close(self) -> None:
        """Close the control lines; the processes end."""
        for line in self._lines:
            # Closing with unread reports would reset the line, and the process would take that for a failure.
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_WR)

    def _tell(self, line: bytes, *, gateways_only: bool = False) -> None:
        for index, channel in enumerate(self._lines):
            if gateways_only and index >= self._gateways:
                continue
            # A process that has ended is noticed by its exit; the line is then closed.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                channel.sendall(line)

    @property
    def _gateways(self) -> int:
        return len(self._lines) - len(self._inside)

    def _start_gateway(self, wire: Wire, ingress: Ingress, run_directory: RunDirectory) -> None:
        payload = wire.payload
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
        try:
            listener = socket.create_server((wire.listen, ingress.port), backlog=128)
        except OSError as error:
            raise ConfigError(
                "network.listen", f"cannot listen on {wire.listen}:{ingress.port}: {error.strerror}"
            ) from error

        def upstream_socket(address: tuple[int, int, *tuple[object, ...]]) -> socket.socket:
            return self._network.create_socket(socket.AddressFamily(address[0]), socket.SocketKind(address[1]))

        self._fork(
            f"gateway {ingress.name}",
            listener,
            lambda control: run_gateway(setup, listener, control, socket_factory=upstream_socket),
            keep=(run_directory.fileno(), self._network.fileno()),
        )

    def _start_sidecar(self, wire: Wire, egress: Egress, listener: socket.socket) -> None:
        payload = wire.payload
        address = wire.peers.get(egress.service)
        if address is None:
            raise ConfigError("network.no_peer_address", f"no address for {egress.service}", hint="see the site file")
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
        self._fork(f"sidecar {egress.name}", listener, lambda control: run_sidecar(setup, listener, control), keep=())

    def _fork(
        self, name: str, listener: socket.socket, serve: Callable[[socket.socket], None], *, keep: Sequence[int]
    ) -> None:
        ours, theirs = socket.socketpair()
        pid = fork_server(lambda: serve(theirs), keep=(listener.fileno(), theirs.fileno(), *keep))
        theirs.close()
        listener.close()
        self._lines.append(ours)
        self._unread.append(b"")
        self.children[name] = pid
