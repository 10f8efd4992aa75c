"""Flower's Runtime API as the executor sees it: acquire a task, then act with that task's token."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import message_pb2, runtime_pb2, task_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_all_nested_objects, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from secfl.errors import EngineError
from secfl.federation.flower.wire import Channel

__all__ = ["Endpoint", "TaskApi", "TaskSource"]

_ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
_OBJECT_WAIT_SECONDS = 600.0
"""How long a peer may take to upload the objects of a message that it announced."""
_OBJECT_POLL_SECONDS = 0.01
_OBJECT_POLL_MAX_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Runtime API listens.

    Attributes:
        host: loopback address.
        port: TCP port.
        tls: context that trusts the server's root, or None for a SuperNode's plain loopback API.
        component: name under which Flower's version check sees the caller.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    component: str

    def channel(self, headers: Mapping[str, str] | None = None) -> Channel:
        """Open a connection with the version headers that Flower expects."""
        version = dict(RuntimeVersionMetadata.from_local_component(self.component).as_metadata())
        return Channel(self.host, self.port, self.tls, {**version, **(headers or {})})


class TaskSource:
    """Hands out tasks of one type, authenticated by the secret that the supervisor shares with Flower's process."""

    def __init__(self, endpoint: Endpoint, secret: bytes, task_type: str) -> None:
        self._channel = endpoint.channel()
        self._secret = derive_auth_secret(secret)
        self._request = runtime_pb2.AcquireTaskRequest(supported_task_types=[task_type])

    def acquire(self) -> tuple[str, task_pb2.Task] | None:
        """Claim the oldest pending task; return its token and description, or None.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        proof = create_superexec_auth_metadata(auth_secret=self._secret, method=_ACQUIRE_METHOD, request=self._request)
        answer = self._channel.call("/v1/runtime/acquire-task", self._request, runtime_pb2.AcquireTaskResponse, proof)
        return (answer.token, answer.task) if answer.HasField("task") and answer.token else None

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class TaskApi:
    """The calls that one claimed task may make; the connection outlives the task."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._channel = endpoint.channel()
        self._token: dict[str, str] = {}

    def adopt(self, token: str) -> None:
        """Use this task's token from now on."""
        self._token = {TASK_TOKEN_HEADER: token}

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def pull_input(self) -> runtime_pb2.PullTaskInputResponse:
        """Fetch context, run description and bundle, and mark the task as running.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        return self._channel.call(
            "/v1/runtime/pull-task-input",
            runtime_pb2.PullTaskInputRequest(),
            runtime_pb2.PullTaskInputResponse,
            self._token,
        )

    def push_output(self, request: runtime_pb2.PushTaskOutputRequest) -> None:
        """Report the end of the task.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        self._channel.call("/v1/runtime/push-task-output", request, runtime_pb2.PushTaskOutputResponse, self._token)

    def heartbeat(self) -> bool:
        """Keep the claim alive; False says that the run is over.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        answer = self._channel.call(
            "/v1/runtime/send-task-heartbeat",
            runtime_pb2.SendTaskHeartbeatRequest(),
            runtime_pb2.SendTaskHeartbeatResponse,
            self._token,
        )
        return bool(answer.success)

    def nodes(self) -> runtime_pb2.GetNodesResponse:
        """List the nodes that are online for this run.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        return self._channel.call(
            "/v1/runtime/get-nodes", runtime_pb2.GetNodesRequest(), runtime_pb2.GetNodesResponse, self._token
        )

    def pull_messages(self, message_ids: list[str]) -> runtime_pb2.PullAppMessagesResponse:
        """Fetch what arrived, without contents.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        return self._channel.call(
            "/v1/runtime/pull-messages",
            runtime_pb2.PullAppMessagesRequest(message_ids=message_ids),
            runtime_pb2.PullAppMessagesResponse,
            self._token,
        )

    def pull_content(self, tree: message_pb2.ObjectTree, node_id: int, run_id: int) -> Message:
        """Fetch the objects of a message, confirm them and put the message together.

        Raises:
            EngineError: `engine.object_missing`, `engine.object_type`, `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        node = Node(node_id=node_id)
        deadline = time.monotonic() + _OBJECT_WAIT_SECONDS
        contents: dict[str, bytes] = {}
        for part in iterate_object_tree(tree):
            if part.object_id not in contents:
                contents[part.object_id] = self._pull_object(part.object_id, node, run_id, deadline)
        self._channel.call(
            "/v1/runtime/confirm-message-received",
            message_pb2.ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=tree.object_id),
            message_pb2.ConfirmMessageReceivedResponse,
            self._token,
        )
        message = inflate_object_from_contents(tree.object_id, contents)
        if not isinstance(message, Message):
            raise EngineError("engine.object_type", "the object tree does not hold a message")
        message.metadata.__dict__["_message_id"] = tree.object_id  # as Flower does: an object cannot hold its own id
        return message

    def push_messages(
        self, messages: list[tuple[Message, message_pb2.ObjectTree]], node_id: int, run_id: int
    ) -> list[str]:
        """Announce messages and upload the objects that the other side lacks; return the accepted message ids.

        Raises:
            EngineError: `engine.object_refused`, `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        objects: dict[str, InflatableObject] = {}
        for message, _ in messages:
            objects.update(get_all_nested_objects(message))
        answer = self._channel.call(
            "/v1/runtime/push-messages",
            runtime_pb2.PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(message)) for message, _ in messages],
                message_object_trees=[tree for _, tree in messages],
            ),
            runtime_pb2.PushAppMessagesResponse,
            self._token,
        )
        node = Node(node_id=node_id)
        for object_id in answer.objects_to_push:
            stored = self._channel.call(
                "/v1/runtime/push-object",
                message_pb2.PushObjectRequest(
                    node=node,
                    run_id=run_id,
                    object_id=object_id,
                    object_content=objects[object_id].deflate(),
                    session_id=answer.session_id,
                ),
                message_pb2.PushObjectResponse,
                self._token,
            )
            if not stored.stored:
                raise EngineError("engine.object_refused", "Flower did not store an object of a message")
        return list(answer.message_ids)

    def _pull_object(self, object_id: str, node: Node, run_id: int, deadline: float) -> bytes:
        pause = _OBJECT_POLL_SECONDS
        request = message_pb2.PullObjectRequest(node=node, run_id=run_id, object_id=object_id)
        while True:
            answer = self._channel.call("/v1/runtime/pull-object", request, message_pb2.PullObjectResponse, self._token)
            if answer.object_found and answer.object_available:
                return bytes(answer.object_content)
            # Announced objects exist from the start but may still be on their way.
            if not answer.object_found or time.monotonic() > deadline:
                raise EngineError("engine.object_missing", "an object of a message is not available")
            time.sleep(pause)
            pause = min(pause * 2, _OBJECT_POLL_MAX_SECONDS)
