"""The warm executor, in place of Flower's own `flower-superexec`.

It claims tasks over Flower's Runtime API and runs them in this one process, on the app that was built from the trusted
directory, checked against the pin and imported before the first task. Flower's own executor starts a process for each
message and unpacks whatever code the task brings.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.app.exception import AppExitException
from flwr.app.message import RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto import runtime_pb2
from flwr.serverapp import ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.object_ref import load_app
from flwr.supercore.task_identity import TaskIdentity

from secfl.errors import EngineError, SecflError, UnavailableError
from secfl.federation.flower.grid import LeasedGrid
from secfl.federation.flower.peers import PeerFile
from secfl.federation.flower.pins import Pins
from secfl.federation.flower.progress import PendingSignal, ProgressWriter
from secfl.federation.flower.runtime import Endpoint, TaskApi, TaskSource

__all__ = ["ServerFiles", "load_component", "run_client", "run_server"]

_POLL_FIRST_SECONDS = 0.005
_POLL_MAX_SECONDS = 0.05
_POLL_FOR_SECONDS = 1.0
"""After a wake-up: how densely and how long to ask for the task that is about to appear."""
_IDLE_SECONDS = 1.0
"""Without a wake-up, ask this often: the wake-up is an economy, never a condition."""
_MESSAGE_TRIES = 100
_HEARTBEAT_SECONDS = 8.0
"""Flower drops a claim that is silent for 30 seconds."""


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where the aggregator's executor meets the shield.

    Attributes:
        peers: `peers.json`, written by the shield.
        progress: file or pipe for progress lines.
        pending: file whose change says that messages wait for the nodes.
        minimum: sites that must train in every round.
    """

    peers: Path
    progress: Path
    pending: Path
    minimum: int = 0


def load_component(reference: str, directory: Path, kind: type[Any]) -> Any:
    """Import the app's component from the unpacked, pinned bundle.

    Raises:
        EngineError: `engine.app_import`.
    """
    try:
        component = load_app(reference, EngineError, directory)
    except Exception as error:  # app code may raise anything on import
        raise EngineError("engine.app_import", f"the app's {reference} cannot be imported: {error!r}") from error
    if not isinstance(component, kind):
        raise EngineError("engine.app_import", f"the app's {reference} is not a {kind.__name__}")
    return component


class _Heartbeat:
    """Keeps the claim of a task alive while the app computes; short tasks never need it."""

    def __init__(self, endpoint: Endpoint, *, end_with_run: bool) -> None:
        self._api = TaskApi(endpoint)
        self._end_with_run = end_with_run
        self._change = threading.Condition()
        self._token: str | None = None
        threading.Thread(target=self._beat, name="task-heartbeat", daemon=True).start()

    def watch(self, token: str | None) -> None:
        """Beat for this task from now on, or for none."""
        with self._change:
            self._token = token
            self._change.notify()

    def _beat(self) -> None:
        while True:
            with self._change:
                token = self._token
                changed = self._change.wait(_HEARTBEAT_SECONDS if token else None)
            if changed or token is None:
                continue
            self._api.adopt(token)
            try:
                alive = self._api.heartbeat()
            except UnavailableError:
                continue  # the next beat tries again; the supervisor sees a dead process by itself
            except SecflError:
                alive = False
            if not alive and token == self._token:
                if self._end_with_run:
                    signal.raise_signal(signal.SIGTERM)  # the run is over: nothing that is computed now counts
                self.watch(None)  # a client's late reply will be refused; the next task is another matter


def _claims(source: TaskSource, wake: int) -> tuple[str, int]:
    """Wait for a task; dense polling follows a wake-up, sparse polling covers a lost one."""
    pause, dense_until = _POLL_FIRST_SECONDS, time.monotonic() + _POLL_FOR_SECONDS
    while True:
        claimed = source.acquire()
        if claimed is not None:
            token, task = claimed
            return token, task.task_id
        dense = time.monotonic() < dense_until
        ready, _, _ = select.select([wake], [], [], pause if dense else _IDLE_SECONDS)
        if ready:
            if not os.read(wake, 4096):
                raise SystemExit(0)  # the supervisor is gone
            pause, dense_until = _POLL_FIRST_SECONDS, time.monotonic() + _POLL_FOR_SECONDS
        else:
            pause = min(pause * 2, _POLL_MAX_SECONDS)


def run_client(endpoint: Endpoint, secret: bytes, pins: Pins, app: ClientApp, wake: int) -> None:
    """Serve ClientApp tasks until the process is stopped.

    Raises:
        EngineError: `engine.api_refused`, `engine.api_malformed`.
        UnavailableError: `engine.api_unreachable`.
    """
    source = TaskSource(endpoint, secret, TaskType.CLIENT_APP)
    api = TaskApi(endpoint)
    heartbeat = _Heartbeat(endpoint, end_with_run=False)
    while True:
        token, _ = _claims(source, wake)
        api.adopt(token)
        heartbeat.watch(token)
        try:
            _serve_message(api, pins, app)
        except EngineError as error:
            # The run ended, or the SuperNode gave the message up, while it was being worked on.
            if error.code not in {"engine.api_refused", "engine.object_missing", "engine.no_message"}:
                raise
        finally:
            heartbeat.watch(None)


def _serve_message(api: TaskApi, pins: Pins, app: ClientApp) -> None:
    task = api.pull_input()
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
    TaskIdentity.node_id = task.context.node_id
    context = context_from_proto(task.context)
    message = _pull_message(api, context)
    output = runtime_pb2.PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="refused")
    try:
        context.run_config = pins.check(task)
        reply = app(message=message, context=context)
        output = runtime_pb2.PushTaskOutputRequest(
            context=context_to_proto(context), sub_status=SubStatus.COMPLETED, details=""
        )
    except SecflError as refusal:
        reply = Message(Error(ErrorCode.INVALID_FAB, refusal.code), reply_to=message)
    except Exception as error:  # noqa: BLE001  # the app's code may raise anything; only the kind leaves the enclave
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)
        output = runtime_pb2.PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=type(error).__name__)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        api.push_messages([(reply, get_object_tree(reply))], context.node_id, context.run_id)
    api.push_output(output)


def _pull_message(api: TaskApi, context: Context) -> Message:
    for _ in range(_MESSAGE_TRIES):
        # The SuperNode creates the task a moment before it stores the message.
        answer = api.pull_messages([])
        if answer.messages_list:
            return api.pull_content(answer.message_object_trees[0], context.node_id, context.run_id)
        time.sleep(_POLL_FIRST_SECONDS)
    raise EngineError("engine.no_message", "the task came without a message")


def run_server(endpoint: Endpoint, secret: bytes, pins: Pins, app: ServerApp, files: ServerFiles, *, wake: int) -> None:
    """Run the one ServerApp task, then return.

    Raises:
        EngineError: `engine.server_app`, and whatever refuses the task: `engine.app_not_pinned`,
            `engine.app_identity`, `engine.run_config_changed`, `engine.task_incomplete`.
        UnavailableError: `engine.api_unreachable`.
    """
    source = TaskSource(endpoint, secret, TaskType.SERVER_APP)
    token, _ = _claims(source, wake)
    source.close()
    api = TaskApi(endpoint)
    api.adopt(token)
    heartbeat = _Heartbeat(endpoint, end_with_run=True)
    heartbeat.watch(token)
    task = api.pull_input()
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
    TaskIdentity.node_id = task.context.node_id
    with ProgressWriter(files.progress) as progress:
        grid = LeasedGrid(api, PeerFile(files.peers), progress, PendingSignal(files.pending), minimum=files.minimum)
        grid.set_run(run_from_proto(task.run))
        context = context_from_proto(task.context)
        context.state = RecordDict()
        _finish(api, lambda: _call_server(pins, app, grid, context, task))


def _call_server(
    pins: Pins, app: ServerApp, grid: LeasedGrid, context: Context, task: runtime_pb2.PullTaskInputResponse
) -> None:
    context.run_config = pins.check(task)
    app(grid=grid, context=context)


def _finish(api: TaskApi, work: Callable[[], None]) -> None:
    """Run the work and tell the SuperLink how it ended; details stay inside, only a code leaves."""
    sub_status, details, failure = SubStatus.COMPLETED, "", None
    try:
        work()
    except SecflError as error:
        sub_status, details, failure = SubStatus.FAILED, error.code, error
    except (Exception, AppExitException) as error:  # noqa: BLE001  # the app's code may raise anything
        sub_status, details = SubStatus.FAILED, type(error).__name__
        failure = EngineError("engine.server_app", f"the ServerApp failed: {error!r}")
        failure.__cause__ = error
    api.push_output(runtime_pb2.PushTaskOutputRequest(sub_status=sub_status, details=details))
    if failure is not None:
        raise failure
