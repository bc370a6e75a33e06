"""Runs one step: in a child of the service, where there is one, else in this process.

    python -IS client.py [--direct | --gpu=N] USAGE MODULE ARGUMENT...

Does what ``python -m hemorrhage.runtime.service.job`` does with these arguments: the same output streams, environment,
signals and exit status. Imports nothing of this package and little of the standard library, since every job starts
with it. ``--direct`` is for steps that run no model: they do not import what the service has ready, the hub's library
reads when it is imported whether it may fetch, and a manifest names the GPU where torch is imported. A step runs on the
processor, unless ``--gpu`` says that it was granted a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import NoReturn

SOCKET = ".snakemake/service.sock"
"""In the folder of the run, and relative: the name of a socket has at most 108 bytes."""

PATIENCE = 300
"""Seconds until a service that does not answer is given up; it answers when it has imported the libraries."""

RELAYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: list[str]) -> None:
    """Run the step of the command line; ends with its exit status."""
    option = arguments.pop(0) if arguments[0].startswith("--") else ""
    if option in ("", "--direct", "--gpu=0"):
        os.environ["HEMORRHAGE_DEVICE"] = "cpu"
    if option == "--direct":
        run_directly(arguments)
    status = run_served(arguments)
    if status is None:
        run_directly(arguments)
    if status < 0:
        # By what ended the job, so that the shell says the same.
        if -status in RELAYED:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def run_directly(arguments: list[str]) -> NoReturn:
    """Become the step."""
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "hemorrhage.runtime.service.job", *arguments])


def run_served(arguments: list[str]) -> int | None:
    """Return the step's exit status as subprocess gives it, or None where it was not run, or not to its end."""
    service = socket.socket(socket.AF_UNIX)
    service.settimeout(PATIENCE)
    request = {
        "arguments": arguments,
        "executable": sys.executable,
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib would cost as much as all else here
        "environment": dict(os.environ),
    }
    try:
        service.connect(SOCKET)
        answers = service.makefile()
        socket.send_fds(service, [b"\n"], [0, 1, 2])
        service.sendall(json.dumps(request).encode() + b"\n")
        begun = answers.readline()
    except OSError:
        # No service, or one of a run that is over.
        return None
    if not begun.startswith("begun"):
        return None
    service.settimeout(None)

    def relay(number: int, _: object) -> None:
        # Where it does not arrive the service is gone, and reading says so.
        with contextlib.suppress(OSError):
            service.send(bytes([number]))

    for number in RELAYED:
        signal.signal(number, relay)
    end = answers.readline()
    if not end:
        for number in RELAYED:
            signal.signal(number, signal.SIG_DFL)
        print("the service died, and the job with it; the step begins again by itself", file=sys.stderr)
        return None
    return int(end)


if __name__ == "__main__":
    main(sys.argv[1:])
