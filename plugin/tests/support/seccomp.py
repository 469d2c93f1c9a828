"""A system call that fails, for what can't be used up without taking it from the rest of the machine."""

from __future__ import annotations

import sys

__all__ = ["without_call"]

# Makes a system call fail, as on a kernel without it or under a container's seccomp profile, and becomes what follows.
# The filter is struct sock_fprog of include/uapi/linux/filter.h: load the call's number, compare, answer.
_WITHOUT_CALL = """
import ctypes, os, struct, sys
number, code = int(sys.argv[1]), int(sys.argv[2])
LOAD, EQUAL, RETURN, ALLOW, ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
lines = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | code), (RETURN, 0, 0, ALLOW)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
filter = struct.pack("@HP", len(lines), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[3], sys.argv[3:])
"""


def without_call(number: int, code: int) -> list[str]:
    """The words that make a system call fail with that errno in whatever command comes after them."""
    return [sys.executable, "-c", _WITHOUT_CALL, str(number), str(code)]
