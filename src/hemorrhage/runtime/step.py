"""What every runnable step starts with: logging to standard error and a bounded number of threads."""

from __future__ import annotations

import logging
import os
import sys


def start() -> None:
    """Log to standard error and keep torch within the threads Snakemake granted this job."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Nothing is fetched behind the user's back: the hub sources switch this off themselves.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
