"""Flower's Control API, called once a node and once a run, from inside and over loopback only."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto import control_pb2
from flwr.supercore.fab import Fab

from secfl.errors import EngineError, UnavailableError
from secfl.federation.flower.bundle import Bundle
from secfl.federation.flower.launch import Scalar
from secfl.federation.flower.runtime import Endpoint

__all__ = ["Control"]

_START_SECONDS = 60.0
_START_POLL_SECONDS = 0.05


class Control:
    """The administrator's side of the SuperLink; it exists only in the supervisor's process."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._channel = endpoint.channel()

    def wait_ready(self) -> None:
        """Wait until the SuperLink answers.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.online()
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_START_POLL_SECONDS)
            else:
                return

    def register(self, key: bytes) -> None:
        """Admit a node key.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        self._channel.call(
            "/v1/control/register-node",
            control_pb2.RegisterNodeRequest(public_key=key),
            control_pb2.RegisterNodeResponse,
        )

    def online(self) -> set[bytes]:
        """Return the keys of the nodes that are connected.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        answer = self._channel.call(
            "/v1/control/list-nodes", control_pb2.ListNodesRequest(), control_pb2.ListNodesResponse
        )
        return {bytes(node.public_key) for node in answer.nodes_info if node.status == "online"}

    def start_run(self, bundle: Bundle, overrides: Mapping[str, Scalar]) -> int:
        """Start the run of a bundle; return its id.

        Raises:
            EngineError: `engine.run_not_started`, `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        answer = self._channel.call(
            "/v1/control/start-run",
            control_pb2.StartRunRequest(
                fab=fab_to_proto(Fab(bundle.sha256, bundle.content, {})),
                override_config=user_config_to_proto(dict(overrides)),
            ),
            control_pb2.StartRunResponse,
        )
        if not answer.HasField("run_id"):
            raise EngineError("engine.run_not_started", "Flower did not start the run")
        return int(answer.run_id)

    def require_completed(self, run_id: int) -> None:
        """Check that the SuperLink too saw the run end well.

        Raises:
            EngineError: `engine.run_failed`, `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        answer = self._channel.call(
            "/v1/control/list-runs", control_pb2.ListRunsRequest(run_id=run_id), control_pb2.ListRunsResponse
        )
        status = answer.run_dict[run_id].status
        if (status.status, status.sub_status) != (Status.FINISHED, SubStatus.COMPLETED):
            raise EngineError("engine.run_failed", f"the run ended as {status.sub_status or status.status}")

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
