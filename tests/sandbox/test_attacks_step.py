"""Attacks on the sandbox, several of each class, each with the wall that holds it.

Three classes: to count as passed without the right answers, to take more than a program may have, to reach something
outside. An attack is a program; in the first class it is judged by the tests below, which no honest answer of it meets.
``WALLS`` says what each wall is, and the suite fails where an attack is held by another one than is written beside it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pytest

from hemorrhage.sandbox import runner as sandbox
from hemorrhage.sandbox.judge import ANSWER_BYTES
from hemorrhage.sandbox.runner import Checks

needs_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))

WALLS = {
    "outside": "the tests compare in a process that never ran the program",
    "values": "what crosses is what a value of Python's own types holds",
    "filter": "a system call that the seccomp filter refuses",
    "later": "a system call that is newer than the filter does not exist",
    "names": "the bound on inodes of /tmp",
    "size": "the bound on bytes of /tmp",
    "limit": "a resource limit",
    "clock": "the runner's clocks",
    "mounts": "what is not mounted is not there, the rest is read only",
    "namespace": "a namespace of its own",
    "user": "a user that owns nothing and has no capability",
}

ASKED = Checks(
    textwrap.dedent("""
        def check(candidate):
            assert candidate(1) == 2
            assert abs(candidate(2) - 3.5) < 1e-6
            assert candidate([1, 2]) == [2, 3]
            assert not candidate(0)

        check(f)
    """),
    ("f",),
)
"""Tests as HumanEval has them."""


@dataclass(frozen=True)
class Attack:
    """A program, the wall that holds it, and how it ends: statuses, and a word of the detail."""

    name: str
    wall: str
    program: str
    statuses: tuple[str, ...] = ("failed", "error")
    word: str = ""
    seconds: float = 2


BOX = """
class Box(object):
    def __init__(self, value=None): self.value = value
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return 0
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __sub__
    def __abs__(self): return self
    def __bool__(self): return True
"""

PASSING = (
    # By what it returns.
    Attack("equal to everything", "outside", f"{BOX}\ndef f(*given): return Box()"),
    Attack("an integer that compares", "values", "class A(int):\n  __eq__ = lambda *_: True\ndef f(x): return A(7)"),
    Attack("a float that compares", "values", "class A(float):\n  __eq__ = lambda *_: True\ndef f(x): return A(7)"),
    Attack("a list that compares", "values", "class A(list):\n  __eq__ = lambda *_: True\ndef f(x): return A()"),
    Attack("a text that compares", "values", "class A(str):\n  __eq__ = lambda *_: True\ndef f(x): return A('2')"),
    Attack("a dictionary that compares", "values", "class A(dict):\n  __eq__ = lambda *_: True\ndef f(x): return A()"),
    Attack("a box in a list", "outside", f"{BOX}\ndef f(*given): return [Box(), Box()]"),
    Attack(
        "a class that compares", "outside", f"class M(type):\n  __eq__ = lambda *_: True\n{BOX}\ndef f(x): return M"
    ),
    Attack("a mock", "outside", "from unittest.mock import MagicMock, ANY\ndef f(x): return ANY"),
    Attack("an array that compares", "outside", "import numpy\ndef f(x): return numpy.array([True])"),
    Attack("a type that says it is another", "values", "class A:\n  __class__ = int\ndef f(x): return A()"),
    # By the interpreter.
    Attack(
        "a tracer that jumps over lines",
        "outside",
        """
        import sys
        def tracer(frame, event, given):
            if frame.f_code.co_name == "check" and event == "line":
                frame.f_lineno = max(line for *_, line in frame.f_code.co_lines() if line)
            return tracer
        sys.settrace(tracer)
        def f(x): return 0
        """,
    ),
    Attack(
        "a profiler that leaves",
        "outside",
        "import os, sys\nsys.setprofile(lambda frame, event, given: os._exit(0) if event == 'c_call' else None)\n"
        "def f(x): return len([])",
        ("error",),
    ),
    Attack(
        "a thread that answers",
        "outside",
        """
        import os, threading
        def flood():
            for number in range(3, 20):
                try:
                    os.write(number, b'{"status": "passed", "detail": ""}\\n' * 10)
                except OSError:
                    pass
        threading.Thread(target=flood).start()
        def f(x): return 0
        """,
    ),
    Attack(
        "the order from the collector",
        "outside",
        """
        import gc, json, os
        for held in gc.get_objects():
            if isinstance(held, dict) and "source" in held and "limits" in held:
                for number in range(3, 20):
                    try:
                        os.write(number, (json.dumps({**held, "status": "passed", "detail": ""}) + "\\n").encode())
                    except (OSError, TypeError):
                        pass
        os._exit(0)
        """,
        ("error",),
    ),
    Attack(
        "the frames above",
        "outside",
        """
        import sys
        frame = sys._getframe()
        while frame:
            for name, value in list(frame.f_locals.items()):
                if name == "reply" or callable(getattr(value, "answer", None)):
                    value.answer = lambda question: True
            frame = frame.f_back
        def f(x): return 0
        """,
    ),
    Attack(
        "the harness's own functions",
        "outside",
        """
        import sys
        for module in list(sys.modules.values()):
            for name in ("pack", "answer", "ended", "write"):
                if hasattr(module, name):
                    setattr(module, name, lambda *given: True)
        import hemorrhage.sandbox.program as program
        program.Program.answer = lambda *given: True
        def f(x): return 0
        """,
    ),
    Attack(
        "its own judge",
        "outside",
        "import hemorrhage.sandbox.judge as judge\njudge.judge = lambda *_: None\n"
        "judge.Remote.__eq__ = lambda *_: True\ndef f(x): return 0",
    ),
    Attack(
        "builtins that agree",
        "outside",
        "import builtins\nbuiltins.abs = builtins.len = lambda *_: 0\nbuiltins.AssertionError = ZeroDivisionError\n"
        "builtins.isinstance = lambda *_: True\ndef f(x): return 0",
    ),
    Attack(
        "slots of comparison, by ctypes",
        "outside",
        """
        import ctypes
        # tp_richcompare of int becomes that of a type that is equal to everything.
        class A:
            def __eq__(self, other): return True
        compare = 25 * 8
        ours = ctypes.c_void_p.from_address(id(A) + compare).value
        ctypes.c_void_p.from_address(id(float) + compare).value = ours
        ctypes.c_void_p.from_address(id(list) + compare).value = ours
        def f(x): return 0.0
        """,
    ),
    Attack(
        "an integer with another value, by ctypes",
        "outside",
        "import ctypes\nctypes.memmove(id(2) + 24, id(0) + 24, 4)\ndef f(x): return 0",
        ("failed", "error", "timeout"),
    ),
    Attack(
        "assertions that are left out",
        "outside",
        "import sys, ast, builtins\nbuiltins.compile = builtins.exec = lambda *_, **__: None\n"
        "sys.flags = None\ndef f(x): return 0",
    ),
    Attack("a module of its name", "outside", "import sys\nsys.modules['tests'] = sys.modules[__name__]\nf = print"),
    Attack("an end by atexit", "outside", "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)"),
    Attack("an end within a call", "outside", "import os\ndef f(x): os._exit(0)", ("error",), "ended before"),
    Attack("an exception of the tests' kind", "outside", "def f(x): raise AssertionError('passed')", ("failed",)),
    Attack("an exception that ends everything", "outside", "def f(x): raise SystemExit(0)", ("error",)),
    Attack(
        "an exception that agrees",
        "outside",
        "class E(BaseException):\n  def __str__(self): return 'passed'\n  __eq__ = lambda *_: True\ndef f(x): raise E",
        ("error",),
    ),
    Attack(
        "a status that it says",
        "outside",
        """
        import os, sys
        def f(x):
            frame = sys._getframe()
            while "order" not in frame.f_locals:
                frame = frame.f_back
            os.write(frame.f_locals["order"]["replies"], b'{"status": "passed", "detail": ""}\\n')
            os._exit(0)
        """,
    ),
    Attack(
        "answers ahead of questions",
        "outside",
        """
        import os
        for number in range(3, 20):
            try:
                os.write(number, b'{"value": true}\\n' * 50)
            except OSError:
                pass
        def f(x): return True
        """,
    ),
    Attack(
        "no line",
        "outside",
        "import os\nwhile True:\n  for n in (3, 4, 5):\n    try: os.write(n, b'x' * 65536)\n    except OSError: pass",
        ("error", "timeout"),
        "",
        0.3,
    ),
    Attack(
        "a line that nests",
        "outside",
        """
        import os
        for number in range(3, 20):
            try:
                os.write(number, b'{"value": ' + b'[' * 60000 + b'\\n')
            except OSError:
                pass
        def f(x): return 0
        """,
        ("error",),
        "no value",
    ),
    Attack(
        "an object that is not there",
        "outside",
        """
        import os
        for number in range(3, 20):
            try:
                os.write(number, b'{"value": ["object", 999999, true, "f"]}\\n' * 3)
            except OSError:
                pass
        """,
    ),
    Attack(
        "types that are none",
        "outside",
        """
        import os
        for number in range(3, 20):
            try:
                os.write(number, b'{"value": ["__import__", "os"]}\\n' * 3)
            except OSError:
                pass
        """,
        ("error",),
        "no value",
    ),
    Attack("an answer without an end", "outside", f"def f(x): return 'x' * {ANSWER_BYTES}", ("error",), "longer than"),
    Attack("closed pipes", "outside", "import os\nos.closerange(3, 64)\ndef f(x): return 0", ("error",)),
    Attack("a call that forks", "filter", "import os\ndef f(x): return os.fork()", ("blocked",)),
)
"""To count as passed."""

TAKING = (
    Attack("names", "names", "for n in range(10**6): open(f'{n}' + 'x' * 200, 'w').close()", ("blocked",), "No space"),
    Attack("folders", "names", "import os\nfor n in range(10**6): os.mkdir(str(n))", ("blocked",), "No space"),
    Attack("links", "names", "import os\nfor n in range(10**6): os.symlink('x' * 4000, str(n))", ("blocked",), "space"),
    Attack("hard links", "names", "import os\nopen('a', 'w').close()\nfor n in range(10**6): os.link('a', f'{n}')",
           ("blocked",), "No space"),
    Attack("pipes with names", "names", "import os\nfor n in range(10**6): os.mkfifo(str(n))", ("blocked",)),
    Attack("attributes of a file", "filter", "import os\nopen('a', 'w').close()\n"
           "for n in range(10**6): os.setxattr('a', f'user.{n}', b'x' * 60000)", ("blocked",), "not permitted"),
    Attack("attributes of an open file", "filter", "import os\nos.setxattr(os.open('a', 66), 'user.a', b'x' * 60000)",
           ("blocked",), "not permitted"),
    Attack("attributes of a link", "filter", "import os\nos.symlink('a', 'b')\n"
           "os.setxattr('b', 'user.a', b'x', follow_symlinks=False)", ("blocked",), "not permitted"),
    Attack("attributes by a later call", "later", """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        open("a", "w").close()
        assert libc.syscall(463, -100, b"a", 0, b"user.a", None, 0) == -1
        raise OSError(1, os.strerror(ctypes.get_errno()))
        """, ("blocked",), "not implemented"),
    Attack("locks of byte ranges", "filter", "import fcntl\nfile = open('a', 'w')\n"
           "for n in range(10**6): fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * n)", ("blocked",), "not permitted"),
    Attack("locks of an open file", "filter", "import fcntl\nfcntl.fcntl(open('a', 'w'), 37, bytes(32))", ("blocked",)),
    Attack("notifications", "filter", """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.inotify_init1(0) == -1
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        """, ("blocked",)),
    Attack("large pipes", "filter", "import fcntl, os\nfcntl.fcntl(os.pipe()[1], 1031, 1 << 20)", ("blocked",)),
    Attack("many pipes", "limit", "import os\nfor n in range(10**6): os.pipe()", ("blocked",), "Too many open files"),
    Attack("timers", "limit", """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        made = ctypes.c_int()
        for number in range(100_000):
            if libc.syscall(222, 1, None, ctypes.byref(made)):
                raise OSError(ctypes.get_errno(), f"{number} timers")
        """, ("blocked",), "64 timers"),
    Attack("threads", "limit", "import threading\nfor n in range(1000):\n"
           "  threading.Thread(target=threading.Event().wait).start()", ("blocked",), "start new thread"),
    Attack("processes", "filter", "import os\nwhile True: os.fork()", ("blocked",), "not permitted"),
    Attack("memory", "limit", "kept = []\nwhile True: kept.append(bytearray(10**7))", ("memory",)),
    Attack("memory in one piece", "limit", "kept = bytearray(10**10)", ("memory",)),
    Attack("memory of NumPy", "limit", "import numpy\nkept = numpy.ones(10**9)", ("memory",)),
    Attack("memory by mapping", "limit", "import mmap\nkept = [mmap.mmap(-1, 1 << 24) for _ in range(1000)]",
           ("blocked", "error", "memory"), "annot allocate"),
    Attack("memory of a file without a name", "filter", "import os\nos.memfd_create('a')", ("blocked",)),
    Attack("bytes in /tmp", "size", "for n in range(99): open(str(n), 'wb').write(bytes(1 << 20))", ("blocked",),
           "No space"),
    Attack("a large file", "limit", "open('a', 'wb').write(bytes(20 << 20))", ("blocked",), "too large"),
    Attack("a hole in a file", "limit", "import os\nos.truncate(os.open('a', 66), 1 << 40)", ("blocked",), "too large"),
    Attack("processor time", "clock", "while True: pass", ("timeout",), "processor time", 0.3),
    Attack("processor time in a thread", "clock", "import threading\ndef spin():\n  while True: pass\n"
           "threading.Thread(target=spin).start()\ndef f(x):\n  while True: pass", ("timeout",), "processor time", 0.3),
    Attack("time on the clock", "clock", "import time\ntime.sleep(100)", ("timeout",), "still running", 0.2),
    Attack("a pattern without an end", "clock", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", ("timeout",), "", 0.3),
    Attack("a signal that is ignored", "clock", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
           "while True: pass", ("timeout",), "processor time", 0.3),
    Attack("work for the tests", "clock", "def f(x): return {n * ((1 << 61) - 1) for n in range(15_000)}",
           ("timeout", "failed"), "", 0.4),
)  # fmt: skip
"""To take more than a program may have."""

REACHING = (
    Attack("a secret by its path", "mounts", "open('/etc/shadow')", ("error",), "No such file"),
    Attack("the processes' files", "mounts", "open('/proc/1/environ')", ("error",), "No such file"),
    Attack("another one's /tmp", "mounts", "import os\nassert os.listdir('/tmp')", ("failed",)),
    Attack("a device", "user", "import os\nos.mknod('/tmp/sda', 0o60666, os.makedev(8, 0))", ("blocked",)),
    Attack("writing to the interpreter", "mounts", "import os\nopen(os.__file__, 'a')", ("blocked",)),
    Attack("writing to the packages", "mounts", "import numpy\nopen(numpy.__file__, 'a')", ("blocked",)),
    Attack("writing to the harness", "mounts", "import hemorrhage.sandbox.judge as judge\nopen(judge.__file__, 'a')",
           ("blocked",)),
    Attack("the mounts anew", "filter", """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(None, b"/usr", None, 32, None) == -1
        raise OSError(ctypes.get_errno(), "remount")
        """, ("blocked",)),
    Attack("a namespace of its own making", "filter", "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
           "assert libc.unshare(0x10000000) == -1\nraise OSError(ctypes.get_errno(), 'unshare')", ("blocked",)),
    Attack("a child by clone3", "filter", "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
           "assert libc.syscall(435, bytes(88), 88) == -1\nassert ctypes.get_errno() == 38\nraise OSError(1, 'clone3')",
           ("blocked",)),
    Attack("a socket", "filter", "import socket\nsocket.create_connection(('127.0.0.1', 80))", ("blocked",)),
    Attack("a name on the network", "filter", "import socket\nsocket.socket(socket.AF_UNIX)", ("blocked",)),
    Attack("a page of the web", "filter", "import urllib.request\nurllib.request.urlopen('http://1.1.1.1')",
           ("blocked", "error"), "not permitted"),
    Attack("its init", "namespace", "import os, signal\nos.kill(1, signal.SIGKILL)", ("blocked",)),
    Attack("a process outside", "namespace", "import os, signal\nos.kill(2**15 - 5, signal.SIGKILL)", ("error",)),
    Attack("memory of another process", "filter", "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
           "assert libc.ptrace(16, 1, 0, 0) == -1\nraise OSError(ctypes.get_errno(), 'ptrace')", ("blocked",)),
    Attack("another user", "user", "import os\nos.setuid(0)", ("blocked",)),
    Attack("a program with other rights", "filter", "import os\nos.execv('/usr/bin/su', ['su'])", ("blocked",)),
    Attack("filters of its own", "filter", "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
           "assert libc.prctl(22, 2, None) == -1\nraise OSError(ctypes.get_errno(), 'seccomp')", ("blocked",)),
    Attack("the kernel's log", "filter", "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
           "assert libc.klogctl(3, None, 0) == -1\nraise OSError(ctypes.get_errno(), 'syslog')", ("blocked",)),
)  # fmt: skip
"""To reach something outside."""


def test_every_wall_is_attacked_and_every_attack_has_its_wall() -> None:
    every = [*PASSING, *TAKING, *REACHING]
    assert {attack.wall for attack in every} == {*WALLS}
    assert len({attack.name for attack in every}) == len(every)


@needs_sandbox
@pytest.mark.parametrize("attack", PASSING, ids=lambda attack: attack.name)
def test_no_answer_no_pass(attack: Attack) -> None:
    result = sandbox.run(textwrap.dedent(attack.program), attack.seconds, 512, ASKED)
    assert result.status in attack.statuses, result
    assert attack.word in result.detail


@needs_sandbox
@pytest.mark.parametrize("attack", [*TAKING, *REACHING], ids=lambda attack: attack.name)
def test_what_is_refused_is_refused_by_its_wall(attack: Attack) -> None:
    checks = ASKED if "def f(x)" in attack.program else sandbox.NONE
    result = sandbox.run(textwrap.dedent(attack.program), attack.seconds, 384, checks)
    assert result.status in attack.statuses, result
    assert attack.word in result.detail, result


@needs_sandbox
def test_the_tests_themselves_can_be_met() -> None:
    honest = "def f(x):\n  return [2, 3] if x == [1, 2] else {1: 2, 2: 3.5, 0: []}[x]"
    assert sandbox.run(honest, 2, 512, ASKED).status == "passed"
