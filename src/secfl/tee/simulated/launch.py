"""Launching an enclave: namespaces, the measured image as root, and execution of nothing but the image's bytes.

Three processes stand between the platform and the enclave. The *monitor* stays outside, writes the user map, serves
the image and reports. The *gate* enters the new namespaces and stays as the parent. The *first process* builds the
root and becomes the enclave by `execve`, so no memory of the platform survives in it. Each dies with its parent.

The manifest that was hashed is the manifest that is served, and every chunk is checked against it when it is read
(EV-31): a file swapped between measuring and running changes nothing or fails.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import NoReturn

from secfl.errors import SecflError, StateError
from secfl.linux import packets
from secfl.linux.fuse_mount import fork_server
from secfl.linux.init import close_all_but, exit_code
from secfl.linux.namespaces import write_user_map
from secfl.linux.syscalls import die_with_parent, set_dumpable
from secfl.tee.simulated.enclave_root import EnclaveFiles, enter_namespaces, run_enclave
from secfl.tee.simulated.image_source import MeasuredImage
from secfl.tee.simulated.requests import EnclaveCommand

__all__ = ["LaunchedEnclave", "launch_enclave"]

_STEP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class LaunchedEnclave:
    """The platform's ends of a launch.

    Attributes:
        monitor: process id of the monitor.
        status: packets from the monitor: started or failed, then exited; signals go the other way.
        channel: the enclave's descriptor 3 leads here and nowhere else.
    """

    monitor: int
    status: socket.socket
    channel: socket.socket


def launch_enclave(image: MeasuredImage, command: EnclaveCommand, files: EnclaveFiles, *, user: int) -> LaunchedEnclave:
    """Fork the monitor of a new enclave and return at once; the outcome arrives on `status`.

    Args:
        image: what was measured; only its bytes are executed.
        command: the program in the image.
        files: host directory, configuration, streams; the caller closes its copies.
        user: the machine's user and group that the enclave's root is.
    """
    status, status_end = packets.pair()
    channel, channel_end = packets.pair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _Monitor(image, command, files, user).run(parent, status_end, channel_end)
    status_end.close()
    channel_end.close()
    return LaunchedEnclave(pid, status, channel)


class _Monitor:
    def __init__(self, image: MeasuredImage, command: EnclaveCommand, files: EnclaveFiles, user: int) -> None:
        self._image = image
        self._command = command
        self._files = files
        self._user = user

    def run(self, parent: int, status: socket.socket, channel: socket.socket) -> NoReturn:
        """Start the enclave, report, wait for its end, report; never returns."""
        try:
            die_with_parent(signal.SIGKILL, parent)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            os.setsid()
            # Other enclaves' channels must not live on here.
            close_all_but((0, 1, 2, status.fileno(), channel.fileno(), *self._files.all(), self._image.data))
            control, control_end = packets.pair()
            control.settimeout(_STEP_SECONDS)
            gate = self._fork_gate(control, control_end, channel)
            control_end.close()
            channel.close()
            enclave = self._complete(gate, control)
            packets.send(status, {"event": "started"})
            packets.send(status, {"event": "exited", "code": _watch(gate, enclave, status)})
        except SecflError as error:
            _fail(status, error)
        except OSError as error:
            _fail(status, StateError("platform.launch_failed", error.strerror or "a system call failed"))
        finally:
            os._exit(0)

    def _fork_gate(self, control: socket.socket, end: socket.socket, channel: socket.socket) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            control.close()
            try:
                die_with_parent(signal.SIGKILL, parent)
                self._gate(parent, end, channel)
            except SecflError as error:
                _fail(end, error)
            except OSError as error:
                _fail(end, StateError("platform.launch_failed", error.strerror or "a system call failed"))
            finally:
                os._exit(1)
        return pid

    def _gate(self, parent: int, control: socket.socket, channel: socket.socket) -> NoReturn:
        stage = enter_namespaces(self._files.host, user=self._user)
        packets.send(control, {"event": "entered"})
        if packets.receive(control) is None:
            raise StateError("platform.monitor_gone", "the monitor has ended")
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # The change of credentials cleared the tie, and the map could be written only while dumpable.
        die_with_parent(signal.SIGKILL, parent)
        set_dumpable(allowed=False)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        first = os.fork()
        if first == 0:
            os.close(writer)
            run_enclave(stage, self._command, self._files, (control, channel, reader))
        os.close(reader)
        packets.send(control, {"event": "forked", "pid": first})
        os.write(writer, b"1")
        # The writer stays open: its end tells the first process that this one died.
        control.close()
        channel.close()
        os._exit(exit_code(os.waitpid(first, 0)[1]))

    def _complete(self, gate: int, control: socket.socket) -> int:
        _expect(control, "entered")
        write_user_map(gate, inside=0, outside=self._user)
        packets.send(control, {"event": "mapped"})
        enclave = os.pidfd_open(int(_expect(control, "forked").message["pid"]))
        (connection,) = _expect(control, "mounted", descriptors=1).descriptors
        fork_server(lambda: self._image.serve(connection), keep=(connection, self._image.data))
        os.close(connection)
        packets.send(control, {"event": "served"})
        # The socket closes itself when execve succeeds.
        packet = packets.receive(control)
        if packet is not None:
            raise packets.rebuild_error(packet.message)
        return enclave


def _expect(control: socket.socket, event: str, *, descriptors: int = 0) -> packets.Packet:
    packet = packets.receive(control, descriptors=descriptors)
    if packet is None:
        raise StateError("platform.launch_failed", "the launch ended without an answer")
    if "error" in packet.message:
        raise packets.rebuild_error(packet.message)
    if packet.message["event"] != event or len(packet.descriptors) != descriptors:
        raise StateError("platform.launch_failed", "the launch gave an unexpected answer")
    return packet


def _watch(gate: int, enclave: int, status: socket.socket) -> int:
    ended = os.pidfd_open(gate)
    poll = select.poll()
    for descriptor in (ended, status.fileno()):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended in ready:
            return exit_code(os.waitpid(gate, 0)[1])
        request = packets.receive(status)
        if request is None:
            # The platform is gone; this process is about to be killed, and everything below it with it.
            os._exit(1)
        try:
            signal.pidfd_send_signal(enclave, int(request.message["signal"]))
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise


def _fail(end: socket.socket, error: SecflError) -> None:
    try:
        packets.send(end, packets.describe_error(error))
    except SecflError:
        # The other side is gone and learns it from its own end.
        return
