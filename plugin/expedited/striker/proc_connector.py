"""The kernel's process events by netlink (cn_proc): who has executed a program, told after it has.

Only executions are asked for, by a filter in the kernel: a busy node forks and exits thousands of times a second. Out of
scope: what was executed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["ProcConnector"]

# include/uapi/linux/netlink.h, connector.h, cn_proc.h
_NETLINK_CONNECTOR = 11
_CN_IDX_PROC = _CN_VAL_PROC = 1
_PROC_CN_MCAST_LISTEN = 1
_PROC_CN_MCAST_IGNORE = 2
_PROC_EVENT_NONE = 0
_PROC_EVENT_EXEC = 2
_NLMSG_DONE = 3
_NLMSGHDR = struct.Struct("=IHHII")  # len, type, flags, seq, pid
_CN_MSG = struct.Struct("=IIIIHH")  # id.idx, id.val, seq, ack, len, flags
_WHAT_AT = _NLMSGHDR.size + _CN_MSG.size  # struct proc_event: what, cpu, timestamp_ns, event_data
_DATA_AT = _WHAT_AT + 16
_WORD = struct.Struct("=I")

# include/uapi/linux/filter.h, bpf_common.h; asm-generic/socket.h
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_BPF_LD_W_ABS = 0x20
_BPF_JEQ_K = 0x15
_BPF_RET_K = 0x06
_SOCK_FILTER = struct.Struct("=HBBI")

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h

_RECEIVE_BUFFER_BYTES = 4 << 20
_WHAT = "process events"
_ANSWER_SECONDS = 1.0


class _Event(NamedTuple):
    """``data`` is the process id of who has executed, or the error code of an answer to us."""

    ack: int
    what: int
    data: int


class ProcConnector:
    """One subscription to executions.

    Args:
        receive_buffer_bytes: What the kernel keeps for us while we don't read.

    Attributes:
        descriptor: Readable when somebody has executed something.

    Raises:
        OSError: the kernel has no process events (EPROTONOSUPPORT), keeps them from us (EPERM: before Linux 6.6 they
            want CAP_NET_ADMIN), or tells them elsewhere only: in the first network namespace (ECONNREFUSED), in the
            first pid and user namespace (ESRCH).
    """

    def __init__(self, receive_buffer_bytes: int = _RECEIVE_BUFFER_BYTES) -> None:
        self._socket = _node_socket()
        try:
            self._ask_for_space(receive_buffer_bytes)
            self._socket.bind((0, _CN_IDX_PROC))
            self._subscribe()
            self._let_only_executions_through()
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.descriptor = self._socket.fileno()

    def executions(self) -> Iterator[int]:
        """The process ids of those who have executed a program, until there are no more now.

        Raises:
            OSError: ENOBUFS: we were too slow, and some were lost; go on with the next call.
        """
        while True:
            try:
                event = self._receive()
            except BlockingIOError:
                return
            if event.what == _PROC_EVENT_EXEC:
                yield event.data

    def close(self) -> None:
        """End the subscription."""
        try:
            self._send(_PROC_CN_MCAST_IGNORE)  # or a kernel before 6.6 goes on making events for nobody
        except OSError:
            pass
        self._socket.close()

    def _ask_for_space(self, size: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except OSError:  # without CAP_NET_ADMIN, what net.core.rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def _subscribe(self) -> None:
        """Ask, and wait for the kernel's word on it: it says nothing to those from whom it keeps everything."""
        try:
            self._send(_PROC_CN_MCAST_LISTEN)
        except ConnectionRefusedError:
            why = "refused; they are told in the first network namespace only (not in a kind node's)"
            raise OSError(errno.ECONNREFUSED, why, _WHAT) from None
        end = time.monotonic() + _ANSWER_SECONDS
        while True:
            # Not blocking at the end: what came while this process was kept from running is there, however late it is
            self._socket.settimeout(max(0.0, end - time.monotonic()))
            try:
                event = self._receive()
            except (TimeoutError, BlockingIOError):
                break
            except OSError as problem:
                if problem.errno != errno.ENOBUFS:
                    raise
                self._send(_PROC_CN_MCAST_LISTEN)  # it may have been among what was lost
                continue
            if event.what == _PROC_EVENT_NONE and event.ack == os.getpid() + 1:  # the number we gave, and one
                if event.data:
                    raise OSError(event.data, os.strerror(event.data), _WHAT)
                return
        why = "no answer; they are told in the first pid and user namespace only"
        raise OSError(errno.ESRCH, why, _WHAT)

    def _receive(self) -> _Event:
        while True:
            datagram, (sender, _) = self._socket.recvfrom(4096)
            # What comes from another process than the kernel proves nothing
            if sender == 0 and len(datagram) >= _DATA_AT + _WORD.size:
                ack = _CN_MSG.unpack_from(datagram, _NLMSGHDR.size)[3]
                what, data = (_WORD.unpack_from(datagram, at)[0] for at in (_WHAT_AT, _DATA_AT))
                return _Event(ack, what, data)

    def _send(self, operation: int) -> None:
        word = _WORD.pack(operation)
        message = _CN_MSG.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, os.getpid(), len(word), 0) + word
        header = _NLMSGHDR.pack(_NLMSGHDR.size + len(message), _NLMSG_DONE, 0, 0, 0)
        self._socket.send(header + message)

    def _let_only_executions_through(self) -> None:
        program = b"".join(
            _SOCK_FILTER.pack(*instruction)
            for instruction in (
                (_BPF_LD_W_ABS, 0, 0, _WHAT_AT),  # as a big-endian number (bpf(2))
                (_BPF_JEQ_K, 0, 1, socket.htonl(_PROC_EVENT_EXEC)),
                (_BPF_RET_K, 0, 0, 0xFFFF),
                (_BPF_RET_K, 0, 0, 0),
            )
        )
        buffer = ctypes.create_string_buffer(program, len(program))
        count = len(program) // _SOCK_FILTER.size
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(buffer))
        )


def _node_socket() -> socket.socket:
    """Made in the network namespace of process 1 where we may, as process events are told in the first one alone.

    A socket stays in the namespace that it was made in; this thread comes back.
    """
    setns = ctypes.CDLL(None, use_errno=True).setns
    own = nodes = -1
    try:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        nodes = os.open("/proc/1/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        pass  # without CAP_SYS_PTRACE; it may be ours
    moved = nodes >= 0 and setns(nodes, _CLONE_NEWNET) == 0
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)
    finally:
        if moved:
            setns(own, _CLONE_NEWNET)
        for descriptor in (own, nodes):
            if descriptor >= 0:
                os.close(descriptor)
