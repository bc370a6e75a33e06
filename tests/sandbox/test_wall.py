"""The walls as they are written down; test_runner.py and test_attacks_step.py run into them."""

from __future__ import annotations

import os
import struct

import pytest

from hemorrhage.sandbox import judge, wall


def verdict(program: bytes, call: int) -> int:
    """What a filter of loads, jumps and returns says about a system call: an interpreter of BPF, as in seccomp(2)."""
    instructions = list(struct.iter_unpack("HBBI", program))
    accumulator, place = 0, 0
    while True:
        code, true, false, value = instructions[place]
        place += 1
        if code == 0x20:
            # struct seccomp_data begins with the number of the call.
            assert value == 0
            accumulator = call
        elif code == 0x35:
            place += true if accumulator >= value else false
        else:
            assert code == 0x06
            return int(value)


@pytest.mark.parametrize(("call", "exists"), [(0, True), (449, True), (450, False), (463, False), (1 << 30, False)])
def test_later_calls_do_not_exist(call: int, exists: bool) -> None:
    enosys = 0x00050000 | 38
    assert verdict(wall.filters()[0], call) == (0x7FFF0000 if exists else enosys)


def test_limits_are_in_the_kernel_s_units() -> None:
    limits = wall.limits(2.5, 64)
    assert limits["RLIMIT_AS"] == 64 * 1024 * 1024
    assert limits["RLIMIT_CPU"] == 4
    assert limits["RLIMIT_CORE"] == limits["RLIMIT_MEMLOCK"] == 0


def test_only_root_does_without_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wall, "_tool", lambda name: name)
    for user, unshared in ((0, False), (1000, True)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        words = wall.command(judge.main, [])
        assert ("--unshare-user" in words) is unshared
        assert ("CAP_SETUID" in words) is not unshared
        assert {"--unshare-pid", "--unshare-net", "--unshare-ipc", "--die-with-parent", "--clearenv"} <= {*words}
        assert words[-3:] == ["-B", "-c", "from hemorrhage.sandbox.judge import main\nmain()"]


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wall.packages.cache_clear()
    assert {"hemorrhage/sandbox", "numpy"} <= {*wall.packages()}
    monkeypatch.setattr(wall, "OFFERED", ("no_such_package",))
    wall.packages.cache_clear()
    with pytest.raises(wall.UnavailableError, match="no_such_package"):
        wall.packages()
    wall.packages.cache_clear()
