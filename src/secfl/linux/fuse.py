"""A FUSE server without libfuse: answers the kernel's requests for one `Operations`.

Rules it keeps: one thread a process (two only contend for the interpreter lock; scale by forking servers of immutable
content); a malformed request or an unknown exception ends the server, so that accesses fail instead of being guessed
at; the server never touches a path below its own mount, since it would wait for itself.

Use: `fuse_mount.open_device` and `mount_fuse`, then `FuseServer(fd, operations).serve()` in this process or through
`fuse_mount.fork_server` in a child that dies with its parent.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from struct import Struct

from secfl.errors import ConfigError, SecflError
from secfl.linux.fuse_operations import Buffer, Operations
from secfl.linux.fuse_wire import (
    MAX_NAME_BYTES,
    MAX_TRANSFER_BYTES,
    REQUEST_BYTES,
    Entry,
    Listed,
    Opcode,
    Request,
    body_name,
    body_struct,
    body_two_names,
    encode_attributes,
    encode_dirent,
    encode_entry,
    encode_init_reply,
    encode_negative_entry,
    encode_open,
    encode_reply_header,
    forget_pairs,
    parse_init,
    parse_request,
    parse_set_attributes,
)

__all__ = ["FuseServer"]

_U64 = Struct("<Q")
_READ = Struct("<QQIIQII")
_GETATTR = Struct("<IIQ")
_OPEN = Struct("<II")
_CREATE = Struct("<IIII")
_MKNOD = Struct("<IIII")
_MKDIR = Struct("<II")
_RENAME2 = Struct("<QII")
_RELEASE = Struct("<QIIQ")
_FSYNC = Struct("<QII")
_FALLOCATE = Struct("<QQQII")
_WRITTEN = Struct("<II")
_DIRENT_BYTES = 24
_ENTRY_BYTES = 128

Reply = Sequence[Buffer]
Handler = Callable[[Request], Reply | None]


class FuseServer:
    """Answers one connection."""

    def __init__(self, fd: int, operations: Operations) -> None:
        """Take over a mounted connection; the caller still closes it."""
        self._fd = fd
        self._operations = operations
        self._buffer = bytearray(REQUEST_BYTES)
        self._handlers: dict[int, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: self._flush,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.STATFS: self._statfs,
            Opcode.SYNCFS: self._syncfs,
            Opcode.INIT: self._init,
            Opcode.DESTROY: self._destroy,
            Opcode.INTERRUPT: self._interrupt,
        }

    def serve(self) -> None:
        """Answer until the file system is unmounted.

        Raises:
            EncodingError: `fuse.malformed` or `fuse.version`.
            ConfigError: `fuse.capability_missing`.
            OSError: the device fails.
        """
        view = memoryview(self._buffer)
        while True:
            try:
                size = os.readv(self._fd, [self._buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                # ENOENT: the request was withdrawn before we took it. ECONNABORTED and others end the server.
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            request = parse_request(view[:size])
            if not self._answer(request):
                return

    def _answer(self, request: Request) -> bool:
        handler = self._handlers.get(request.opcode)
        number: int = errno.ENOSYS
        payload: Reply | None = ()
        if handler is not None:
            try:
                number, payload = 0, handler(request)
            except NotImplementedError:
                number, payload = errno.ENOSYS, ()
            except OSError as error:
                number, payload = error.errno or errno.EIO, ()
            except SecflError as error:
                if error.code.startswith("fuse."):
                    raise
                self._operations.failed(request, error)
                number, payload = errno.EIO, ()
        if payload is None:
            return True
        self._reply(request.unique, number, payload)
        return request.opcode != Opcode.DESTROY

    def _reply(self, unique: int, number: int, payload: Reply) -> None:
        header = encode_reply_header(unique, number, sum(map(len, payload)))
        try:
            os.writev(self._fd, [header, *payload])
        except OSError as error:
            # ENOENT: the caller was killed while it waited; nobody wants the answer any more.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def _init(self, request: Request) -> Reply:
        offer = parse_init(request)
        missing = self._operations.required_flags & ~offer.flags
        if missing:
            raise ConfigError("fuse.capability_missing", "the kernel lacks a FUSE capability", flags=int(missing))
        flags = self._operations.init_flags | self._operations.required_flags
        return [encode_init_reply(offer, flags & offer.flags)]

    def _destroy(self, _request: Request) -> Reply:
        self._operations.destroy()
        return ()

    def _interrupt(self, _request: Request) -> None:
        # One request at a time: when this one is read, the interrupted one has been answered. It takes no reply.
        return None

    def _entry(self, entry: Entry) -> bytes:
        return encode_entry(entry, seconds=self._operations.cache_seconds)

    def _lookup(self, request: Request) -> Reply:
        name = body_name(request)
        if len(name) > MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        entry = self._operations.lookup(request.node, name)
        if entry is not None:
            return [self._entry(entry)]
        seconds = self._operations.negative_cache_seconds
        if not seconds:
            raise FileNotFoundError(errno.ENOENT, "no such name")
        return [encode_negative_entry(seconds=seconds)]

    def _forget(self, request: Request) -> None:
        self._operations.forget(request.node, body_struct(request, _U64)[0])

    def _batch_forget(self, request: Request) -> None:
        for node, count in forget_pairs(request):
            self._operations.forget(node, count)

    def _attributes(self, request: Request) -> Reply:
        attributes = self._operations.getattr(request.node)
        return [encode_attributes(attributes, seconds=self._operations.cache_seconds)]

    def _getattr(self, request: Request) -> Reply:
        body_struct(request, _GETATTR)
        return self._attributes(request)

    def _setattr(self, request: Request) -> Reply:
        attributes = self._operations.setattr(request.node, parse_set_attributes(request))
        return [encode_attributes(attributes, seconds=self._operations.cache_seconds)]

    def _readlink(self, request: Request) -> Reply:
        return [self._operations.readlink(request.node)]

    def _symlink(self, request: Request) -> Reply:
        name, target = body_two_names(request)
        return [self._entry(self._operations.symlink(request.node, name, target))]

    def _mknod(self, request: Request) -> Reply:
        name = body_name(request, _MKNOD.size)
        mode, device, _umask, _ = _MKNOD.unpack_from(request.body)
        return [self._entry(self._operations.mknod(request.node, name, mode, device))]

    def _mkdir(self, request: Request) -> Reply:
        name = body_name(request, _MKDIR.size)
        mode, _umask = _MKDIR.unpack_from(request.body)
        return [self._entry(self._operations.mkdir(request.node, name, mode))]

    def _unlink(self, request: Request) -> Reply:
        self._operations.unlink(request.node, body_name(request))
        return ()

    def _rmdir(self, request: Request) -> Reply:
        self._operations.rmdir(request.node, body_name(request))
        return ()

    def _rename(self, request: Request) -> Reply:
        old, new = body_two_names(request, _U64.size)
        self._operations.rename((request.node, old), (_U64.unpack_from(request.body)[0], new), 0)
        return ()

    def _rename2(self, request: Request) -> Reply:
        old, new = body_two_names(request, _RENAME2.size)
        directory, flags, _ = _RENAME2.unpack_from(request.body)
        self._operations.rename((request.node, old), (directory, new), flags)
        return ()

    def _link(self, request: Request) -> Reply:
        name = body_name(request, _U64.size)
        return [self._entry(self._operations.link(_U64.unpack_from(request.body)[0], request.node, name))]

    def _open(self, request: Request) -> Reply:
        handle = self._operations.open(request.node, body_struct(request, _OPEN)[0])
        return [encode_open(handle, self._operations.open_flags)]

    def _create(self, request: Request) -> Reply:
        name = body_name(request, _CREATE.size)
        flags, mode, _umask, _ = _CREATE.unpack_from(request.body)
        entry, handle = self._operations.create(request.node, name, mode, flags)
        return [self._entry(entry), encode_open(handle, self._operations.open_flags)]

    def _read(self, request: Request) -> Reply:
        handle, offset, size, *_ = body_struct(request, _READ)
        return self._operations.read(request.node, handle, offset, min(size, MAX_TRANSFER_BYTES))

    def _write(self, request: Request) -> Reply:
        head = Request(*_head(request), request.body[: _READ.size])
        handle, offset, size, *_ = body_struct(head, _READ)
        data = request.body[_READ.size :]
        if len(data) != size:
            raise OSError(errno.EINVAL, "the data has another size than announced")
        return [_WRITTEN.pack(self._operations.write(request.node, handle, offset, data), 0)]

    def _flush(self, request: Request) -> Reply:
        self._operations.flush(request.node, body_struct(request, _RELEASE)[0])
        return ()

    def _release(self, request: Request) -> Reply:
        self._operations.release(request.node, body_struct(request, _RELEASE)[0])
        return ()

    def _fsync(self, request: Request) -> Reply:
        handle, flags, _ = body_struct(request, _FSYNC)
        self._operations.fsync(request.node, handle, data_only=bool(flags & 1))
        return ()

    def _opendir(self, request: Request) -> Reply:
        return [encode_open(self._operations.opendir(request.node, body_struct(request, _OPEN)[0]), 0)]

    def _readdir(self, request: Request) -> Reply:
        handle, offset, size, *_ = body_struct(request, _READ)
        lines: list[bytes] = []
        for listed in self._operations.readdir(request.node, handle, offset):
            line = encode_dirent(listed)
            size -= len(line)
            if size < 0:
                break
            lines.append(line)
        return [b"".join(lines)]

    def _readdirplus(self, request: Request) -> Reply:
        handle, offset, size, *_ = body_struct(request, _READ)
        lines: list[bytes] = []
        for listed in self._operations.readdir(request.node, handle, offset):
            size -= _ENTRY_BYTES + _DIRENT_BYTES + (len(listed.name) + 7) // 8 * 8
            # Before the look-up: a line that is not sent must not count a reference.
            if size < 0:
                break
            lines.append(encode_dirent(listed, entry=self._listed_entry(request.node, listed)))
        return [b"".join(lines)]

    def _listed_entry(self, node: int, listed: Listed) -> bytes:
        if listed.name in (b".", b".."):
            return bytes(_ENTRY_BYTES)
        entry = self._operations.lookup(node, listed.name)
        return bytes(_ENTRY_BYTES) if entry is None else self._entry(entry)

    def _releasedir(self, request: Request) -> Reply:
        self._operations.releasedir(request.node, body_struct(request, _RELEASE)[0])
        return ()

    def _fsyncdir(self, request: Request) -> Reply:
        handle, flags, _ = body_struct(request, _FSYNC)
        self._operations.fsyncdir(request.node, handle, data_only=bool(flags & 1))
        return ()

    def _fallocate(self, request: Request) -> Reply:
        handle, offset, length, mode, _ = body_struct(request, _FALLOCATE)
        self._operations.fallocate(request.node, handle, offset, length, mode)
        return ()

    def _statfs(self, _request: Request) -> Reply:
        return [self._operations.statfs().encode()]

    def _syncfs(self, request: Request) -> Reply:
        body_struct(request, _U64)
        self._operations.syncfs()
        return ()


def _head(request: Request) -> tuple[int, int, int, int, int, int]:
    return request.opcode, request.unique, request.node, request.uid, request.gid, request.pid
