"""Fetching over a network that may be lost."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")

PAUSES = (2.0, 10.0, 30.0)
"""Seconds between attempts."""

log = logging.getLogger(__name__)


def fetch_persistently(what: str, fetch: Callable[[], T]) -> T:
    """Return what ``fetch`` gives, tried again after each of PAUSES where the network or the server was lost.

    Raises ConnectionError, which names ``what``, where it stays lost. What else ``fetch`` raises passes through:
    waiting helps against no unknown name and no missing permission.
    """
    for pause in PAUSES:
        try:
            return fetch()
        except Exception as error:
            if not lost(error):
                raise
            log.warning("%s: %s; trying again in %g s", what, _line(error), pause)
            time.sleep(pause)
    try:
        return fetch()
    except Exception as error:
        if not lost(error):
            raise
        again = "run again when the network is back; nothing half fetched is kept"
        raise ConnectionError(f"{what} could not be fetched ({_line(error)}); {again}") from error


def dataset(repository: str, config: str | None, split: str, revision: str, files: str | None = None) -> Dataset:
    """Fetch a split of a data set of the hub at a commit; ``files``, a pattern, replaces a configuration.

    Raises as ``fetch_persistently``.
    """
    # The steps forbid network access; this one is asked for. The library reads the variable when imported.
    os.environ["HF_HUB_OFFLINE"] = "0"
    from datasets import load_dataset

    def fetch() -> Dataset:
        if files:
            return load_dataset(repository, data_files={split: files}, split=split, revision=revision)
        return load_dataset(repository, config, split=split, revision=revision)

    return fetch_persistently(repository, fetch)


def lost(error: Exception) -> bool:
    """Tell whether an error says that the network or the server is not there now."""
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", 0)
    kinds = (ConnectionError, TimeoutError, socket.gaierror, httpx.TransportError, LocalEntryNotFoundError)
    return isinstance(error, kinds) or status == 429 or status >= 500


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
