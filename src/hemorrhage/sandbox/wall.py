"""The walls around a process: bubblewrap's namespaces and mounts, filters of system calls, resource limits.

bubblewrap: https://github.com/containers/bubblewrap, libseccomp: https://github.com/seccomp/libseccomp
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path

NOBODY = 65534
FIRST_USER, USERS = 1 << 30, 1 << 29
"""Users of programs where root runs them: one drawn for each process, so that the kernel counts its threads alone."""

THREADS = 32
FILE_BYTES = 16 << 20
NAMES = 1024
"""Files, folders and links in /tmp, at most."""
OPEN_FILES = 64
SIGNALS = 64
"""Signals and timers that wait, at most."""

PACKAGES = Path("/packages")
"""Where the packages are that a program may import beside the standard library."""
OFFERED = ("numpy",)

REFUSED = (
    *("socket", "socketpair", "io_uring_setup", "io_setup"),
    *("fork", "vfork", "execve", "execveat", "seccomp"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "flock"),
    *("inotify_init", "inotify_init1", "fanotify_init"),
    *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
    *("memfd_create", "memfd_secret", "shmget", "semget", "msgget", "mq_open", "add_key", "request_key", "keyctl"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "kcmp", "perf_event_open"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "mount_setattr", "name_to_handle_at", "open_by_handle_at", "quotactl", "quotactl_fd"),
    *("bpf", "userfaultfd", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
    *("reboot", "syslog", "personality", "swapon", "swapoff", "acct"),
)
"""System calls that fail with EPERM: what reaches out, and what takes memory of the kernel that no limit counts."""

REFUSED_COMMANDS = (6, 7, 37, 38, 1024, 1026, 1031)
"""Commands of fcntl that fail with EPERM: locks of every kind, leases, notifications, larger pipes."""

CLONE_THREAD = 0x10000
PR_SET_SECCOMP = 22

LATER_CALLS = 450
"""Number of the first system call that does not exist for a program: set_mempolicy_home_node of Linux 5.17. Later ones
are not known to libseccomp by name; since 5.1 a number is the same call on every processor."""

ERRNO, ALLOW = 0x00050000, 0x7FFF0000
LOAD_WORD, JUMP_AT_LEAST, RETURN = 0x20, 0x35, 0x06
"""Of seccomp's and BPF's interface."""


class UnavailableError(RuntimeError):
    """Raised where the machine has no sandbox or could not start one: nothing was run."""


def limits(seconds: float, memory_mb: int) -> dict[str, int]:
    """Return the resource limits, soft and hard; bytes, seconds and counts as setrlimit(2) takes them.

    The one on processor time is behind the runner's own clock: SIGXCPU after a second more, and whole ones.
    """
    return {
        "RLIMIT_AS": memory_mb << 20,
        "RLIMIT_CPU": math.ceil(seconds) + 1,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_NPROC": THREADS,
        "RLIMIT_SIGPENDING": SIGNALS,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }


@functools.cache
def filters() -> tuple[bytes, ...]:
    """Make the seccomp filters as BPF; calls through another ABI of the processor end the program."""
    return _later_calls(), _named_calls()


def _named_calls() -> bytes:
    import pyseccomp
    from pyseccomp import EQ, MASKED_EQ, Arg

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for call in REFUSED:
        rules.add_rule(refuse, call)
    for command in REFUSED_COMMANDS:
        rules.add_rule(refuse, "fcntl", Arg(1, EQ, command))
    # Threads and nothing else. What clone3 is given lies in memory, where no filter sees it; libraries then call clone.
    rules.add_rule(refuse, "clone", Arg(0, MASKED_EQ, CLONE_THREAD, 0))
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(refuse, "prctl", Arg(0, EQ, PR_SET_SECCOMP))
    with FileIO(os.memfd_create("filter"), "r+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.readall()


def _later_calls() -> bytes:
    """Let calls from LATER_CALLS on fail as on a kernel that has none of them; the number is the data's first word."""
    instructions = ((LOAD_WORD, 0, 0, 0), (JUMP_AT_LEAST, 0, 1, LATER_CALLS))
    ends = ((RETURN, 0, 0, ERRNO | errno.ENOSYS), (RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *each) for each in (*instructions, *ends))


def command(main: Callable[[], None], options: list[str]) -> list[str]:
    """Make the command line of bubblewrap that runs ``main``, a function of this room, behind the walls.

    ``options`` are bubblewrap's, with the numbers of open files.
    """
    return [*_bubblewrap(), *options, "--", *_interpreter(main)]


def _bubblewrap() -> list[str]:
    words = [_tool("bwrap"), "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    # To bound what /tmp holds, and to change the user; hemorrhage.sandbox.inside gives them up.
    words += ["--cap-add", "CAP_SYS_ADMIN"]
    if os.geteuid() == 0:
        # No user namespace: the limit on threads does not bind who is root outside of one.
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    words += ["--ro-bind", "/usr", "/usr"]
    for folder in (Path("/lib"), Path("/lib64")):
        if folder.is_symlink():
            words += ["--symlink", str(folder.readlink()), str(folder)]
        else:
            words += ["--ro-bind-try", str(folder), str(folder)]
    prefix = Path(sys.base_prefix)
    outside = not prefix.is_relative_to("/usr")
    # bubblewrap makes the folders above what it binds as closed as they are outside; root's home may be one.
    above = [Path("/dev"), Path("/etc"), PACKAGES, PACKAGES / "hemorrhage"]
    for folder in [*above, *([*reversed(prefix.parents)][1:] if outside else [])]:
        words += ["--perms", "0755", "--dir", str(folder)]
    if outside:
        words += ["--ro-bind", str(prefix), str(prefix)]
    for inside, folder in packages().items():
        words += ["--ro-bind", str(folder), str(PACKAGES / inside)]
    words += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    words += ["--dev-bind", "/dev/null", "/dev/null", "--perms", "0777", "--size", str(FILE_BYTES), "--tmpfs", "/tmp"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    return [*words, "--chdir", "/tmp", "--remount-ro", "/"]


ENVIRONMENT = {
    # Equal hashes in every run: the order of a set of strings is then the program's, not the run's.
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "PYTHONPATH": str(PACKAGES),
    # The address space that a thread would reserve.
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@functools.cache
def packages() -> dict[str, Path]:
    """Return the folders of the packages inside: this room itself, and OFFERED with the libraries beside them."""
    folders = {"hemorrhage/sandbox": Path(__file__).parent}
    for name in OFFERED:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise UnavailableError(f"programs need the package {name}, which is not installed")
        folder = Path(spec.submodule_search_locations[0])
        folders[name] = folder
        if (libraries := folder.with_name(f"{name}.libs")).is_dir():
            folders[libraries.name] = libraries
    return folders


def _interpreter(main: Callable[[], None]) -> list[str]:
    """Make the command line of this interpreter: no site-packages, no user's folder, no bytecode written."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return [executable, "-s", "-S", "-P", "-B", "-c", f"from {main.__module__} import main\nmain()"]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(f"{name} is not installed")
    return os.path.realpath(path)
