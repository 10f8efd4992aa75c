"""The grid that the ServerApp receives: Flower's interface, with the shield's view of who takes part.

A node without a running lease gets no message and has no reply accepted, whenever the lease lapsed (FL-01). The list
of nodes only grows while a strategy plans a phase: Flower's sampling counts the nodes, then waits until as many are
there, and would wait for ever if a lease lapsed between its two looks. Replies are handed over in the order of site
names, so that floating-point aggregation does not depend on arrival. They are polled every few hundredths of a second
where Flower's own grid waits three seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NoReturn

from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.run import Run

from secfl.errors import EngineError
from secfl.federation.flower.peers import Peer, PeerFile
from secfl.federation.flower.progress import PendingSignal, ProgressWriter, weighted_mean
from secfl.federation.flower.runtime import TaskApi

__all__ = ["LeasedGrid"]

_POLL_SECONDS = 0.04
_POLL_SLOW_SECONDS = 0.25
_POLL_FAST_FOR_SECONDS = 10.0
"""Short tasks are noticed at once; long ones do not cost polling."""


class LeasedGrid(Grid):  # type: ignore[misc]  # Flower's types are not followed
    """A grid over the Runtime API that knows sites and leases."""

    def __init__(
        self, api: TaskApi, peers: PeerFile, progress: ProgressWriter, pending: PendingSignal, *, minimum: int = 0
    ) -> None:
        """Take the parts.

        Args:
            minimum: replies of the training phase without which nothing is handed to the strategy.
        """
        self._minimum = minimum
        self._api = api
        self._peers = peers
        self._progress = progress
        self._pending = pending
        self._run: Run | None = None
        self._keys: dict[int, bytes] = {}
        self._planned: dict[str, NodeInfo] = {}
        self._phases: dict[str, int] = {}
        self._sent: dict[str, int] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to.

        Raises:
            EngineError: `engine.no_run`.
        """
        if self._run is None:
            raise EngineError("engine.no_run", "the grid was used before its run was set")
        return self._run

    def create_message(self, *_: object, **__: object) -> NoReturn:
        """Refuse the call that Flower deprecated.

        Raises:
            EngineError: `engine.deprecated_call`.
        """
        raise EngineError("engine.deprecated_call", "Grid.create_message is gone", hint="use flwr.app.Message")

    def get_nodes(self) -> list[NodeInfo]:
        """List the nodes that were online with a running lease since messages were last sent, in order of site names.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`, `engine.peers_unreadable`.
            UnavailableError: `engine.api_unreachable`.
        """
        live = self._peers.live()
        for node in self._api.nodes().nodes:
            key = bytes(node.public_key)
            if key in live:
                self._keys[node.node_id] = key
                self._planned[live[key].site] = node  # a site that came back with another node counts once
        return [self._planned[site] for site in sorted(self._planned)]

    def get_node_ids(self) -> list[int]:
        """List the ids of the nodes of `get_nodes`.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`, `engine.peers_unreadable`.
            UnavailableError: `engine.api_unreachable`.
        """
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to the nodes whose lease still runs; return the ids of what was sent.

        Raises:
            EngineError: `engine.object_refused`, `engine.api_refused`, `engine.api_malformed`, `engine.pending_file`.
            UnavailableError: `engine.api_unreachable`.
        """
        # A lease may have lapsed since the strategy sampled its nodes: ask again at the last moment.
        admitted = [message for message in messages if self._peer(message.metadata.dst_node_id) is not None]
        self._planned.clear()
        if not admitted:
            return []
        with no_object_id_recompute():
            for message in admitted:
                message.metadata.__dict__["_message_id"] = message.object_id  # what Flower's grid does
            parts = [(message, get_object_tree(message)) for message in admitted]
            accepted = self._api.push_messages(parts, SUPERLINK_NODE_ID, self.run.run_id)
        self._pending.raise_()
        ids = [message_id for message_id in accepted if message_id]
        for message in admitted:
            if message.metadata.message_id in ids:
                self._sent[message.metadata.message_id] = message.metadata.dst_node_id
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Fetch the replies to these messages that have come in, without those of nodes whose lease lapsed.

        Raises:
            EngineError: `engine.object_missing`, `engine.object_type`, `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        wanted = [message_id for message_id in message_ids if message_id in self._sent]
        if not wanted:
            return []
        answer = self._api.pull_messages(wanted)
        replies: list[Message] = []
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            node_id = self._sent.pop(proto.metadata.reply_to_message_id, None)
            # A late reply, or one to a message that was not ours to wait for, is not even fetched.
            if node_id is not None and self._peer(node_id) is not None:
                replies.append(self._api.pull_content(tree, SUPERLINK_NODE_ID, self.run.run_id))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send, wait for every node whose lease runs, and return the replies in the order of site names.

        Raises:
            EngineError: `engine.object_missing`, `engine.object_refused`, `engine.api_refused`,
                `engine.api_malformed`, `engine.progress_line`, `engine.progress_unread`, `engine.too_few_clients`.
            UnavailableError: `engine.api_unreachable`.
        """
        batch = list(messages)
        ids = self.push_messages(batch)
        targets = {message_id: self._sent[message_id] for message_id in ids}
        started = time.monotonic()
        replies: dict[str, Message] = {}
        while waiting := [i for i in ids if i not in replies and self._peer(targets[i]) is not None]:
            for reply in self.pull_messages(waiting):
                replies[reply.metadata.reply_to_message_id] = reply
            elapsed = time.monotonic() - started
            if len(replies) == len(ids) or (timeout is not None and elapsed >= timeout):
                break
            time.sleep(_POLL_SECONDS if elapsed < _POLL_FAST_FOR_SECONDS else _POLL_SLOW_SECONDS)
        for message_id in ids:
            self._sent.pop(message_id, None)  # what comes later is late
        ordered: list[tuple[str, int, Message]] = []
        for position, message_id in enumerate(ids):
            peer = self._peer(targets[message_id])
            if message_id in replies and peer is not None:
                ordered.append((peer.site, position, replies[message_id]))
        ordered.sort(key=lambda item: item[:2])
        if batch:
            self._report(batch[0].metadata.message_type, [(site, reply) for site, _, reply in ordered])
        return [reply for _, _, reply in ordered]

    def _peer(self, node_id: int) -> Peer | None:
        key = self._keys.get(node_id)
        return self._peers.live().get(key) if key is not None else None

    def _report(self, message_type: str, replies: list[tuple[str, Message]]) -> None:
        phase = message_type.partition(".")[0]
        if phase not in {"train", "evaluate"}:
            return
        self._phases[phase] = self._phases.get(phase, 0) + 1
        good = [(site, reply.content) for site, reply in replies if not reply.has_error()]
        if phase == "train" and len(good) < self._minimum:
            # An aggregate of few updates shows each of them (FL-24).
            raise EngineError(
                "engine.too_few_clients",
                f"{len(good)} sites trained in round {self._phases[phase]}",
                hint="the policy's minimum_clients must be reached in every round",
                expected=self._minimum,
                actual=len(good),
            )
        metrics = weighted_mean([_scalars(content) for _, content in good]) if good else {}
        self._progress.write(self._phases[phase], phase, metrics, [site for site, _ in good])


def _scalars(content: RecordDict) -> dict[str, float]:
    return {
        name: value
        for record in content.metric_records.values()
        for name, value in record.items()
        if isinstance(value, int | float)
    }
