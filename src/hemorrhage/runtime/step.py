"""Start of every runnable step: logging to standard error and a bounded number of threads."""

from __future__ import annotations

import logging
import os
import sys
from types import TracebackType

from hemorrhage.runtime.artifact import disk_is_full


class InputError(ValueError):
    """Raised where the user's input can't be used; the message is one line for the user."""


def start() -> None:
    """Log to standard error and keep torch within the threads Snakemake granted this job."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Nothing is fetched behind the user's back: the hub sources switch this off themselves.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.excepthook = explain


def explain(error_type: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write why a step ended: one line where its input, the network or the disk is to blame, else the traceback."""
    if disk_is_full(error):
        line = "the disk is full; make room and run again: what is finished stays"
    elif isinstance(error, PermissionError):
        line = f"{error.filename}: {error.strerror}"
    elif isinstance(error, InputError) or error_type is ConnectionError:
        line = " ".join(str(error).split())
    else:
        sys.__excepthook__(error_type, error, trace)
        return
    print(f"error: {line}", file=sys.stderr)
