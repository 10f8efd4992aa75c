"""The grid against a SuperLink simulator: who is asked, whose reply counts, and in which order replies are given."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from secfl.crypto import strict_json
from secfl.errors import EngineError
from secfl.federation.flower.grid import LeasedGrid
from secfl.federation.flower.peers import PeerFile, public_key_pem
from secfl.federation.flower.plain_keys import make_keys
from secfl.federation.flower.progress import PendingSignal, ProgressWriter
from secfl.federation.flower.runtime import TaskApi

SITES = ("alpha", "bravo", "charlie")


class SimulatedSuperLink(TaskApi):
    """Holds sent messages and hands replies out in an order that the test chooses."""

    def __init__(self, keys: list[bytes]) -> None:
        # Ids run against the order of sites.
        self._nodes = {100 - index: key for index, key in enumerate(keys)}
        self.sent: list[Message] = []
        self.replies: list[Message] = []
        self.fetched: list[str] = []

    def add(self, node_id: int, key: bytes) -> None:
        """Let one more node be online."""
        self._nodes[node_id] = key

    def nodes(self) -> GetNodesResponse:
        """List all nodes."""
        return GetNodesResponse(nodes=[NodeInfo(node_id=i, public_key=k) for i, k in sorted(self._nodes.items())])

    def push_messages(self, messages: list[tuple[Message, ObjectTree]], node_id: int, run_id: int) -> list[str]:
        """Take messages."""
        self.sent += [message for message, _ in messages]
        return [message.metadata.message_id for message, _ in messages]

    def pull_messages(self, message_ids: list[str]) -> PullAppMessagesResponse:
        """Hand out the replies to these messages that are there."""
        ready = [reply for reply in self.replies if reply.metadata.reply_to_message_id in message_ids]
        self.replies = [reply for reply in self.replies if reply not in ready]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(reply) for reply in ready],
            message_object_trees=[get_object_tree(self._keep(reply)) for reply in ready],
        )

    def _keep(self, reply: Message) -> Message:
        self._contents = {**getattr(self, "_contents", {}), reply.object_id: reply}
        return reply

    def pull_content(self, tree: object, node_id: int, run_id: int) -> Message:
        """Hand out a reply's content."""
        object_id = str(tree.object_id)  # type: ignore[attr-defined]
        self.fetched.append(object_id)
        found = self._contents[object_id]
        assert isinstance(found, Message)
        return found

    def answer(self, message: Message, auc: float | None) -> None:
        """Put a node's reply there; None stands for an error of the app."""
        sender = message.metadata.dst_node_id
        if auc is None:
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "KeyError"), reply_to=message)
        else:
            record = MetricRecord({"num-examples": sender, "auc": auc})
            reply = Message(RecordDict({"metrics": record}), reply_to=message)
        self.replies.append(reply)


class World:
    """A grid of three sites with a clock that the test moves."""

    def __init__(self, root: Path) -> None:
        self.clock = 0.0
        keys = make_keys(root / "keys", SITES).node_public
        self.peers = [{"site": s, "node_key": keys[s], "lease_until": 10 * (n + 1)} for n, s in enumerate(SITES)]
        self.path = root / "peers.json"
        self.path.write_bytes(strict_json.encode({"peers": self.peers}))
        self.link = SimulatedSuperLink([public_key_pem(keys[site]) for site in SITES])
        self.progress = root / "progress"
        self.writer = ProgressWriter(self.progress)
        self.grid = LeasedGrid(
            self.link, PeerFile(self.path, now=lambda: self.clock), self.writer, PendingSignal(root / "pending")
        )
        self.grid.set_run(Run.create_empty(5))
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 5, 1

    def messages(self, kind: str = "train") -> list[Message]:
        """One message a node, in whatever order the strategy sampled them."""
        return [Message(RecordDict(), node, kind) for node in sorted(self.grid.get_node_ids())]

    def lines(self) -> list[dict[str, object]]:
        """Read the progress lines."""
        return [strict_json.decode(line) for line in self.progress.read_bytes().splitlines()]

    def answer_in(self, seconds: float, order: tuple[int, ...]) -> threading.Thread:
        """Answer the messages later, in the given order of arrival."""

        def work() -> None:
            while len(self.link.sent) < len(self.peers):
                time.sleep(0.001)
            time.sleep(seconds)
            for index in order:
                self.link.answer(self.link.sent[index], 0.25 * (index + 1))
                time.sleep(0.05)

        thread = threading.Thread(target=work)
        thread.start()
        return thread


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh grid."""
    return World(tmp_path)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_replies_come_in_the_order_of_sites(world: World, order: tuple[int, ...]) -> None:
    """Whatever the order of arrival and of node ids, the strategy sees the sites in order of their names."""
    thread = world.answer_in(0.05, order)
    replies = world.grid.send_and_receive(world.messages(), timeout=10)
    thread.join()
    assert [reply.metadata.src_node_id for reply in replies] == [100, 99, 98]
    assert [line["replies"] for line in world.lines()] == [list(SITES)]


def test_fl_01_lapsed_nodes_are_neither_sent_to_nor_listed_again(world: World) -> None:
    """A lease that lapsed between sampling and sending keeps the model from that node, and the next list lacks it."""
    messages = world.messages()
    world.clock = 10.0
    world.grid.push_messages(messages)
    assert sorted(message.metadata.dst_node_id for message in world.link.sent) == [98, 99]
    assert world.grid.get_node_ids() == [99, 98]


def test_fl_01_a_lease_that_lapses_while_a_strategy_samples_does_not_stop_the_run(world: World) -> None:
    """Flower's own FedAvg, between its count and its sampling, keeps the nodes that it counted; one gets no model."""

    class Lapsing(LeasedGrid):
        def get_node_ids(self) -> list[int]:
            ids = super().get_node_ids()
            world.clock = 10.0  # after the count, before the sampling
            return ids

    world.grid = Lapsing(
        world.link,
        PeerFile(world.path, now=lambda: world.clock),
        world.writer,
        PendingSignal(world.path.parent / "pending"),
    )
    world.grid.set_run(Run.create_empty(5))
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    # The strategy has no timeout of its own here, so a regression must fail rather than hang.
    planned: list[Message] = []
    planner = threading.Thread(
        target=lambda: planned.extend(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), world.grid)),
        daemon=True,
    )
    planner.start()
    planner.join(5)
    assert not planner.is_alive()
    assert {message.metadata.dst_node_id for message in planned} == {100, 99, 98}
    world.grid.push_messages(planned)
    assert sorted(message.metadata.dst_node_id for message in world.link.sent) == [98, 99]


def test_a_site_that_returns_with_another_node_is_listed_once(world: World) -> None:
    """Within one phase the newer node of a site takes the place of the older one."""
    assert world.grid.get_node_ids() == [100, 99, 98]
    key = make_keys(world.path.parent / "again", SITES).node_public["alpha"]
    world.peers[0]["node_key"] = key
    world.path.write_bytes(strict_json.encode({"peers": world.peers}))
    world.link.add(7, public_key_pem(key))
    assert world.grid.get_node_ids() == [7, 99, 98]


def test_fl_01_a_reply_after_the_lease_is_dropped(world: World) -> None:
    """A node whose lease lapses while it computes has no effect on the round, and the round does not wait for it."""
    messages = world.messages()
    thread = world.answer_in(0.05, (0, 1))

    def lapse() -> None:
        time.sleep(0.3)
        world.clock = 10.0

    clock = threading.Thread(target=lapse)
    clock.start()
    replies = world.grid.send_and_receive(messages, timeout=30)
    thread.join()
    clock.join()
    assert [reply.metadata.src_node_id for reply in replies] == [99, 98]
    assert world.lines()[0]["replies"] == ["bravo", "charlie"]


def test_a_late_reply_is_not_even_fetched(world: World) -> None:
    """After the timeout of a phase, what comes in for it is ignored."""
    messages = world.messages()
    assert world.grid.send_and_receive(messages, timeout=0.05) == []
    world.link.answer(messages[0], 0.5)
    assert world.grid.pull_messages([messages[0].metadata.message_id]) == []
    assert world.link.fetched == []


def test_fl_19_a_missing_node_ends_the_phase_at_its_timeout(world: World) -> None:
    """Replies that came in count, the silent node does not, and nothing hangs."""
    thread = world.answer_in(0.0, (0, 1))
    replies = world.grid.send_and_receive(world.messages(), timeout=2)
    thread.join()
    assert len(replies) == 2


def test_error_replies_reach_the_strategy_but_not_the_metrics(world: World) -> None:
    """A failed app is visible to the strategy and leaves no number."""
    messages = world.messages("evaluate")

    def fail() -> None:
        time.sleep(0.05)
        for message in world.link.sent:
            world.link.answer(message, None)

    thread = threading.Thread(target=fail)
    thread.start()
    replies = world.grid.send_and_receive(messages, timeout=10)
    thread.join()
    assert [reply.has_error() for reply in replies] == [True] * 3
    assert world.lines() == [{"round": 1, "phase": "evaluate", "metrics": {}, "replies": []}]


def test_rounds_are_counted_a_phase(world: World) -> None:
    """Each phase has its own counter and other messages have none."""
    for kind in ("train", "evaluate", "query", "train"):
        world.grid.send_and_receive(world.messages(kind), timeout=0.01)
    assert [(line["round"], line["phase"]) for line in world.lines()] == [(1, "train"), (1, "evaluate"), (2, "train")]


def test_the_grid_needs_its_run(tmp_path: Path) -> None:
    """Used before its run is set, and by Flower's deprecated call, the grid refuses."""
    with ProgressWriter(tmp_path / "progress") as writer:
        grid = LeasedGrid(SimulatedSuperLink([]), PeerFile(tmp_path / "p"), writer, PendingSignal(tmp_path / "s"))
        with pytest.raises(EngineError, match=r"engine\.no_run"):
            _ = grid.run
        with pytest.raises(EngineError, match=r"engine\.deprecated_call"):
            grid.create_message()


def test_fl_24_too_few_training_replies_are_not_aggregated(world: World, tmp_path: Path) -> None:
    """With fewer training replies than the policy's minimum the strategy gets nothing and the run ends."""
    world.grid = LeasedGrid(
        world.link,
        PeerFile(world.path, now=lambda: world.clock),
        world.writer,
        PendingSignal(tmp_path / "pending"),
        minimum=3,
    )
    world.grid.set_run(Run.create_empty(5))
    messages = world.messages()
    thread = world.answer_in(0.05, (0, 1))
    with pytest.raises(EngineError) as caught:
        world.grid.send_and_receive(messages, timeout=2)
    thread.join()
    assert caught.value.code == "engine.too_few_clients"
