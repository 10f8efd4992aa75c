"""Code and configuration that the policy does not name, brought to a real SuperNode's executor and a real SuperLink."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.runtime_pb2 import PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from secfl.errors import ConfigError, EngineError
from secfl.federation.flower import executor
from secfl.federation.flower.bundle import Bundle, build, require, unpack
from secfl.federation.flower.executor import _serve_message, load_component
from secfl.federation.flower.pins import Pins
from secfl.federation.flower.runtime import Endpoint, TaskApi, TaskSource

SECRET = b"s" * 32
RUN_ID, NODE_ID = 11, 22

CLIENT = """
import pathlib
from flwr.app import Message, RecordDict, MetricRecord
from flwr.clientapp import ClientApp
pathlib.Path({canary!r}).write_text("ran")
app = ClientApp()
@app.train()
def train(message, context):
    metrics = MetricRecord({{"num-examples": 1, "k": context.run_config["k"]}})
    return Message(RecordDict({{"m": metrics}}), reply_to=message)
@app.evaluate()
def evaluate(message, context):
    raise RuntimeError("patient 4711")
"""
PROJECT = """
[project]
name = "tiny"
version = "1.0.0"
[tool.flwr.app]
publisher = "secfl"
[tool.flwr.app.components]
serverapp = "{module}.server:app"
clientapp = "{module}.client:app"
[tool.flwr.app.config]
k = 1
rate = 0.5
"""


def make_app(directory: Path, module: str, canary: Path) -> Path:
    """Write a small app that leaves a canary when its code is imported."""
    (directory / module).mkdir(parents=True)
    (directory / module / "__init__.py").write_text("")
    (directory / module / "client.py").write_text(CLIENT.format(canary=str(canary)))
    (directory / module / "server.py").write_text("from flwr.serverapp import ServerApp\napp = ServerApp()\n")
    (directory / "pyproject.toml").write_text(PROJECT.format(module=module))
    return directory


class SuperNode:
    """Flower's own Runtime API of a SuperNode, with a state that the test fills as a SuperLink's messages would."""

    def __init__(self) -> None:
        factory = NodeStateFactory(ObjectStoreFactory())
        self.state: NodeState = factory.state()
        self.state.set_node_id(NODE_ID)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        config = uvicorn.Config(create_app(factory, SECRET), host="127.0.0.1", port=self.port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self.port, None, "flwr-clientapp")

    def deliver(
        self, bundle: Bundle, *, run: dict[str, object] | None = None, merged: dict[str, object] | None = None,
        message_type: str = "train",
    ) -> None:  # fmt: skip
        """Store a run, its bundle and one message, and create the task, as the SuperNode's loop does."""
        empty = Run.create_empty(RUN_ID)
        given = {"fab_id": bundle.app_id, "fab_version": bundle.version, "fab_hash": bundle.sha256, **(run or {})}
        info = replace(empty, **given)
        context = Context(RUN_ID, NODE_ID, {}, RecordDict(), merged or bundle.run_config({}), info.series_id)
        self.state.set_run_series_context(info.series_id, context)
        self.state.store_run(info)
        self.state.store_fab(Fab(info.fab_hash, bundle.content, {}))
        assert self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN_ID, fab_hash=info.fab_hash) is not None
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, 1
        message = Message(RecordDict({"c": ConfigRecord({"server-round": 1})}), NODE_ID, message_type)
        _insert_message(message, self.state, self.state.object_store)

    def stop(self) -> None:
        """Stop the server."""
        self.server.should_exit = True
        self.thread.join()

    def serve(self, pins: Pins, app: ClientApp) -> Message:
        """Let the executor do its one task; return the reply that the SuperNode would send on."""
        source, api = TaskSource(self.endpoint, SECRET, TaskType.CLIENT_APP), TaskApi(self.endpoint)
        claimed = source.acquire()
        assert claimed is not None
        api.adopt(claimed[0])
        _serve_message(api, pins, app)
        source.close()
        api.close()
        (reply,) = self.state.get_messages_legacy(is_reply=True)
        assert isinstance(reply, Message)
        return reply


@pytest.fixture
def supernode() -> Iterator[SuperNode]:
    """A running SuperNode API."""
    node = SuperNode()
    yield node
    node.stop()


class App:
    """The pinned app of a test and the canary that its import leaves."""

    def __init__(self, directory: Path, module: str) -> None:
        self.canary = directory / "canary"
        self.directory = make_app(directory / "app", module, self.canary)
        self.bundle = build(self.directory)
        self.module = module
        self.code = directory / "code"

    def load(self) -> ClientApp:
        """Unpack and import it."""
        app = load_component(self.bundle.client, unpack(self.bundle, self.code), ClientApp)
        assert isinstance(app, ClientApp)
        return app


@pytest.fixture
def pinned(tmp_path: Path, request: pytest.FixtureRequest) -> App:
    """An app under a module name of its own, so that tests do not share imports."""
    return App(tmp_path / "pinned", f"tiny_{abs(hash(request.node.name))}")


def test_the_pinned_app_answers_over_the_real_api(supernode: SuperNode, pinned: App) -> None:
    """The chain AcquireTask, PullTaskInput, PushMessages, PushTaskOutput works against Flower's own SuperNode."""
    supernode.deliver(pinned.bundle)
    reply = supernode.serve(Pins(pinned.bundle, {}), pinned.load())
    assert not reply.has_error()
    assert pinned.canary.read_text() == "ran"
    assert [task.status.sub_status for task in supernode.state.get_tasks()] == ["completed"]


def test_an_error_of_the_app_becomes_an_error_reply_without_its_text(supernode: SuperNode, pinned: App) -> None:
    """What the app says in an exception may hold patient data: only the exception's type leaves."""
    supernode.deliver(pinned.bundle, message_type="evaluate")
    reply = supernode.serve(Pins(pinned.bundle, {}), pinned.load())
    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "RuntimeError")


def test_fl_29_other_code_over_the_wire_is_not_imported(supernode: SuperNode, pinned: App, tmp_path: Path) -> None:
    """A task that brings another bundle is answered with a refusal; its code is neither unpacked nor imported."""
    evil = App(tmp_path / "evil", pinned.module)
    supernode.deliver(evil.bundle)
    app = pinned.load()
    reply = supernode.serve(Pins(pinned.bundle, {}), app)
    assert (reply.error.code, reply.error.reason) == (ErrorCode.INVALID_FAB, "engine.app_not_pinned")
    assert not evil.canary.exists()


@pytest.mark.parametrize("part", ["content", "hash", "run"])
def test_fl_29_bytes_and_every_name_of_them_are_compared(
    supernode: SuperNode, pinned: App, tmp_path: Path, part: str
) -> None:
    """Other bytes under the pinned hash, and pinned bytes under another hash, are both refused."""
    evil = App(tmp_path / "evil", pinned.module)
    supernode.deliver(pinned.bundle)
    claimed = TaskSource(supernode.endpoint, SECRET, TaskType.CLIENT_APP).acquire()
    assert claimed is not None
    api = TaskApi(supernode.endpoint)
    api.adopt(claimed[0])
    task = api.pull_input()
    assert Pins(pinned.bundle, {}).check(task) == {"k": 1, "rate": 0.5}
    if part == "content":
        task.fab.content = evil.bundle.content
    elif part == "hash":
        task.fab.hash_str = evil.bundle.sha256
    else:
        task.run.fab_hash = evil.bundle.sha256
    with pytest.raises(EngineError, match=r"engine\.app_not_pinned"):
        Pins(pinned.bundle, {}).check(task)
    task.ClearField("fab")
    with pytest.raises(EngineError, match=r"engine\.task_incomplete"):
        Pins(pinned.bundle, {}).check(task)
    assert not evil.canary.exists()


@pytest.mark.parametrize("override", [{"k": 2}, {"k": True}, {"k": 1}, {"rate": 1.0}])
def test_fl_29_changed_run_configuration_is_refused(
    supernode: SuperNode, pinned: App, override: dict[str, bool | int | float | str]
) -> None:
    """Whoever starts a run cannot set a value that the policy does not, not even to the default."""
    supernode.deliver(pinned.bundle, run={"override_config": override}, merged={**pinned.bundle.defaults, **override})
    reply = supernode.serve(Pins(pinned.bundle, {}), pinned.load())
    assert reply.error.reason == "engine.run_config_changed"


def test_fl_29_changed_merged_configuration_is_refused(supernode: SuperNode, pinned: App) -> None:
    """A SuperNode that merges other values than the bundle and the policy give is refused."""
    supernode.deliver(pinned.bundle, merged={**pinned.bundle.defaults, "rate": 9.0})
    reply = supernode.serve(Pins(pinned.bundle, {}), pinned.load())
    assert reply.error.reason == "engine.run_config_changed"


def test_fl_29_other_app_identity_is_refused(supernode: SuperNode, pinned: App) -> None:
    """A run under another app id or version is refused."""
    supernode.deliver(pinned.bundle, run={"fab_version": "2.0.0"})
    reply = supernode.serve(Pins(pinned.bundle, {}), pinned.load())
    assert reply.error.reason == "engine.app_identity"


@pytest.mark.parametrize("changed", ["client.py", "server.py", "pyproject.toml"])
def test_fl_29_changed_strategy_model_or_defaults_change_the_pin(pinned: App, changed: str) -> None:
    """Strategy, initial model and default configuration are in the bundle: changing any is another app."""
    path = pinned.directory / (changed if changed == "pyproject.toml" else f"{pinned.module}/{changed}")
    path.write_text(path.read_text().replace("rate = 0.5", "rate = 0.6") + "\n# changed\n")
    if changed == "pyproject.toml":
        assert build(pinned.directory).defaults["rate"] == 0.6
    with pytest.raises(EngineError, match=r"engine\.app_not_pinned"):
        require(build(pinned.directory), pinned.bundle.sha256)


def test_fl_29_stray_files_beside_the_sources_are_not_importable(pinned: App) -> None:
    """Byte code and extension modules beside the reviewed sources never reach the directory that is imported."""
    folder = pinned.directory / pinned.module
    (folder / "client.so").write_bytes(b"\x7fELF")
    (folder / "client.cpython-311-x86_64-linux-gnu.so").write_bytes(b"\x7fELF")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "client.cpython-311.pyc").write_bytes(b"evil")
    bundle = build(pinned.directory)
    assert bundle.sha256 == pinned.bundle.sha256
    names = {path.suffix for path in unpack(bundle, pinned.code).rglob("*") if path.is_file()}
    assert names == {".py", ".toml", ""}


def test_unknown_run_configuration_key_is_refused(pinned: App) -> None:
    """A policy that sets a key which the app does not have is an error, not a silent no-op."""
    with pytest.raises(ConfigError, match=r"engine\.run_config_key"):
        pinned.bundle.run_config({"seeed": 3})


def test_fl_27_task_requests_without_the_secret_get_nothing(supernode: SuperNode, pinned: App) -> None:
    """Another process on loopback cannot claim a task without the executor's secret."""
    supernode.deliver(pinned.bundle)
    with pytest.raises(EngineError, match=r"engine\.api_refused") as caught:
        TaskSource(supernode.endpoint, os.urandom(32), TaskType.CLIENT_APP).acquire()
    assert caught.value.details["status"] == 401


def test_a_long_task_keeps_its_claim(supernode: SuperNode, pinned: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the app computes, heartbeats move the end of the claim; after the task's end a client goes on living."""
    monkeypatch.setattr(executor, "_HEARTBEAT_SECONDS", 0.05)
    supernode.deliver(pinned.bundle)
    claimed = TaskSource(supernode.endpoint, SECRET, TaskType.CLIENT_APP).acquire()
    assert claimed is not None
    token, task = claimed
    api = TaskApi(supernode.endpoint)
    api.adopt(token)
    api.pull_input()
    before = supernode.state.task_token_store[task.task_id].active_until
    executor._Heartbeat(supernode.endpoint, end_with_run=False).watch(token)
    deadline = time.monotonic() + 5
    while supernode.state.task_token_store[task.task_id].active_until == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    api.push_output(PushTaskOutputRequest(sub_status="completed"))
    time.sleep(0.15)
