"""One step in this process, as ``python -m MODULE ARGUMENT...`` would run it, and what it used.

    python -m hemorrhage.runtime.service.job USAGE MODULE ARGUMENT...

USAGE, a file, gets a header and a row, tab-separated, in the terms of Snakemake's benchmark files: ``s``, seconds
since the process began; ``max_rss``, MB, its own greatest resident memory and that of its largest descendant;
``cpu_time``, seconds of it and of its descendants; ``start_up``, CPU seconds before the step began and within its
imports. Snakemake itself would see the client alone, and looks at longer jobs only twice a minute. A process that was
killed leaves no row, nor does a job whose output another run has made (hemorrhage.runtime.service.store).
"""

from __future__ import annotations

import atexit
import builtins
import os
import resource
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from hemorrhage.runtime import lacking
from hemorrhage.runtime.service import device, store

COLUMNS = ("s", "max_rss", "cpu_time", "start_up")


class Imports:
    """Measures what imports cost, also those that a step makes late: CPU seconds of the outermost ones."""

    def __init__(self) -> None:
        self.seconds = time.process_time()
        self.within = False
        self.original = builtins.__import__

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Import as Python would."""
        if self.within or threading.current_thread() is not threading.main_thread():
            return self.original(*arguments, **named)
        self.within, began = True, time.process_time()
        try:
            return self.original(*arguments, **named)
        finally:
            self.within = False
            self.seconds += time.process_time() - began


def run(usage: Path, module: str, arguments: list[str]) -> NoReturn:
    """Run ``module`` as the main program with ``arguments``, and end this process as the interpreter would."""
    sys.argv = [module, *arguments]
    imports = builtins.__import__ = Imports()
    atexit.register(_write, usage, os.getpid(), imports)
    status = 0
    try:
        with store.shared(Path(arguments[0]) if arguments else Path()) as is_linked:
            if is_linked:
                atexit.unregister(_write)
            elif not lacking.inherit(module, arguments):
                device.assign()
                runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = _status(end.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    _leave(status)


def _status(code: object) -> int:
    """Return the exit status that sys.exit(code) means."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def _leave(status: int) -> NoReturn:
    # The interpreter would go on to take thousands of modules apart, which takes torch's 0.7 CPU seconds.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


def _write(usage: Path, process: int, imports: Imports) -> None:
    # What was forked off without ending by os._exit comes here, too.
    if os.getpid() != process:
        return
    itself, descendants = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    processor = itself.ru_utime + itself.ru_stime + descendants.ru_utime + descendants.ru_stime
    row = (_age(), (itself.ru_maxrss + descendants.ru_maxrss) / 1024, processor, imports.seconds)
    usage.parent.mkdir(parents=True, exist_ok=True)
    lines = ("\t".join(COLUMNS), "\t".join(f"{value:.2f}" for value in row))
    usage.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _age() -> float:
    """Seconds since this process was forked."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
