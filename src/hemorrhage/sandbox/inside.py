"""The beginning of a process inside the sandbox, before it runs what nobody has read: it gives up all that it has.

bubblewrap has made its namespaces and mounts by then. What is left, in this order: the bound on the names in /tmp, the
user, the capabilities, the resource limits, the filters of system calls. Where a step fails the process ends with its
reason, and nothing was run. The standard library only.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import resource
import sys
from typing import Any

READY = b"the sandbox is closed\n"
"""Said on standard output when nothing is left to give up."""

MS_NOSUID, MS_NODEV, MS_REMOUNT = 2, 4, 32
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 22, 38, 47
SECCOMP_MODE_FILTER, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
LINUX_CAPABILITY_VERSION_3 = 0x20080522
"""Numbers of the kernel's interface: mount(2), prctl(2), seccomp(2), capset(2)."""

INSTRUCTION_BYTES = 8
"""A ``struct sock_filter``."""

WALLS = (errno.EPERM, errno.EACCES, errno.EROFS, errno.EAGAIN, errno.ENOSPC, errno.EFBIG, errno.EMFILE)
"""How the sandbox refuses."""


class Filter(ctypes.Structure):
    """A ``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def begin() -> dict[str, Any]:
    """Read the order from standard input, leave everything behind, say READY, and return the order.

    Standard input, output and error are /dev/null from then on.
    """
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    _bound_names(libc, order["file_bytes"], order["names"])
    _become(libc, order["user"], order["group"])
    for limit, value in order["limits"].items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    _call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for filtered in order["filters"]:
        code = base64.b64decode(filtered)
        program = Filter(len(code) // INSTRUCTION_BYTES, code)
        _call(libc.prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    os.write(1, READY)
    null = os.open("/dev/null", os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(null, file)
    os.close(null)
    return order


def _bound_names(libc: ctypes.CDLL, size: int, names: int) -> None:
    """Bound bytes and inodes of /tmp; extended attributes take of the inodes' bound since Linux 6.6."""
    options = f"size={size},nr_inodes={names}".encode()
    _call(libc.mount, b"tmpfs", b"/tmp", b"tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV, options)


def _become(libc: ctypes.CDLL, user: int | None, group: int) -> None:
    """Become ``user`` and keep no capability; None: bubblewrap has changed the user already."""
    if user is not None:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    _call(libc.prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _call(libc.capset, ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _call(function: Any, *given: Any) -> None:
    if function(*(ctypes.c_ulong(each) if isinstance(each, int) else each for each in given)):
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")


def ended(error: BaseException, characters: int) -> tuple[str, str]:
    """Return status and detail of code that ended with ``error``, which may be an object that nobody has read."""
    name = type(error).__name__
    try:
        detail = f"{name}: {error}"[:characters]
    except BaseException:
        detail = name
    if isinstance(error, AssertionError):
        return "failed", detail
    if isinstance(error, MemoryError):
        return "memory", detail
    if (isinstance(error, OSError) and error.errno in WALLS) or "start new thread" in detail:
        return "blocked", detail
    return "error", detail
