"""One job at a time on a GPU: each takes a device that no other job holds.

Snakemake counts GPUs (``gpu`` in a rule's resources) but hands out none. SLURM does, by CUDA_VISIBLE_DEVICES: what
names a single device is left as it is. Of several, or where nothing is said, the first free one is taken, by a lock
that ends with the job however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

_held: list[TextIO] = []
"""Open files whose locks last until the process ends."""

PAUSE = 0.2
"""Seconds between two looks for a free device."""


def assign() -> None:
    """Let this process see one GPU, unless it runs on the processor. To be called before anything looks for GPUs."""
    if os.environ.get("HEMORRHAGE_DEVICE") == "cpu":
        return
    devices = visible()
    if not devices:
        print("a GPU was asked for and none is here: the processor computes", file=sys.stderr)
    elif len(devices) > 1 or "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = take(devices)


def visible() -> list[str]:
    """List the devices that this process may use, by CUDA_VISIBLE_DEVICES; else all of the machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device]
    # CUDA numbers what the machine, or the container, has: its files may have other numbers.
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def take(devices: Sequence[str]) -> str:
    """Lock a device that no other process holds; waits until there is one."""
    while True:
        for device in devices:
            stream = open(Path(tempfile.gettempdir(), f"hemorrhage-gpu-{device}.lock"), "a")  # noqa: PTH123, SIM115
            with contextlib.suppress(PermissionError):
                # Jobs of other users take turns with ours.
                Path(stream.name).chmod(0o666)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                continue
            _held.append(stream)
            return device
        time.sleep(PAUSE)
