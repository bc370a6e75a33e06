"""JSON over HTTP to one server that the user named, and to no other.

Only addresses below the named URL are called: redirects are not followed, and no proxy or .netrc of the environment is
used. TLS is verified (SSL_CERT_FILE and SSL_CERT_DIR name other authorities). The key comes from an environment
variable and goes into one header; it is masked in whatever the server says. 429, 5xx and a lost connection are tried
again with growing pauses, all requests of a client together, or after what Retry-After says.
"""

from __future__ import annotations

import json
import logging
import os
import random
import ssl
import threading
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from hemorrhage.engines.environment import EngineError

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the second attempt, which double with each, and at most."""

LARGEST_ANSWER = 1 << 29
"""Bytes of an answer that are read."""

log = logging.getLogger(__name__)


class EndpointError(EngineError):
    """A server can't be used or does not do what it was asked; the message is one line."""


class RejectedError(EndpointError):
    """The server understood and said no (4xx)."""


class LostError(EndpointError):
    """The server is not there, is overloaded, or the time is used up: running again resumes."""


def check_url(url: str, has_key: bool = False) -> SplitResult:
    """Return the parts of a URL. Raises EndpointError where it can't be called as it is."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(f"{_shown(parts)} is not an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise EndpointError(f"{_shown(parts)}: no user or password in a URL; name an environment variable with the key")
    if parts.query or parts.fragment:
        raise EndpointError(f"{_shown(parts)}: a URL without ? and #; name an environment variable with the key")
    if has_key and parts.scheme == "http" and not _is_this_machine(parts.hostname):
        raise EndpointError(f"{_shown(parts)}: a key is sent over https only")
    return parts


def _shown(parts: SplitResult) -> str:
    """Return a URL without what may be secret in it."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def _tls() -> ssl.SSLContext:
    """Return the context that verifies servers; reading the authorities takes a while."""
    import httpx

    return httpx.create_ssl_context()


def read_key(variable: str | None) -> str | None:
    """Return the key in an environment variable, None where none is named. Raises EndpointError where it is empty."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(f"the environment variable {variable} is empty; it should hold the server's key")
    if not key.isascii() or not key.isprintable():
        raise EndpointError(f"the environment variable {variable} holds characters that no header may have")
    return key


@dataclass
class Client:
    """A connection to the server at ``url``, for several threads.

    ``timeout``: seconds of one request; ``attempts``: of each request; ``deadline``: the time.monotonic() after which
    nothing is sent.
    """

    url: str
    key_env: str | None = None
    timeout: float = 120.0
    attempts: int = 6
    deadline: float = float("inf")
    requests: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        import httpx

        # It logs a line for each request; failures are logged here.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._key = read_key(self.key_env)
        check_url(self.url, self._key is not None)
        self.url = self.url.rstrip("/")
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._client = httpx.Client(
            verify=_tls(),
            trust_env=False,
            follow_redirects=False,
            timeout=self.timeout,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_keepalive_connections=8),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url})"

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def get(self, path: str) -> object:
        """Return the JSON at a path below the URL. Raises EndpointError."""
        return self._persist("GET", path, None)

    def post(self, path: str, body: object) -> object:
        """Return the JSON that the server answers. Raises EndpointError."""
        return self._persist("POST", path, body)

    def mask(self, text: str, longest: int = 300) -> str:
        """Return what a server said as one short line without the key."""
        line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        masked = line.replace(self._key, "***") if self._key else line
        return masked if len(masked) <= longest else f"{masked[:longest]}..."

    def _persist(self, method: str, path: str, body: object) -> object:
        reason = ""
        for attempt in range(self.attempts):
            self._wait()
            outcome = self._send(method, path, body)
            if isinstance(outcome, _Content):
                return outcome.content
            reason = outcome.reason
            if attempt + 1 < self.attempts:
                pause = self._pause(attempt, outcome.after)
                log.info("%s: %s; again in %.1f s", self.url, reason, pause)
        raise LostError(f"{self.url}: {reason}, {self.attempts} times; run again to resume")

    def _pause(self, attempt: int, after: float | None) -> float:
        """Hold all requests back for a while and return the seconds. Raises LostError where there is no time for it."""
        grown = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
        pause = grown if after is None else after
        until = time.monotonic() + pause
        if until > self.deadline:
            raise LostError(f"{self.url}: asks to wait {pause:.0f} s, which the time budget does not allow")
        with self._lock:
            self._not_before = max(self._not_before, until)
        return pause

    def _wait(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            time.sleep(left)
        if time.monotonic() > self.deadline:
            raise LostError(f"{self.url}: the time budget is used up; run again to resume, or allow more seconds")

    def _send(self, method: str, path: str, body: object) -> _Content | _Again:
        import httpx

        with self._lock:
            self.requests += 1
        try:
            with self._client.stream(method, f"{self.url}{path}", json=body) as response:
                content = self._read(response)
        except httpx.TimeoutException:
            return _Again(f"no answer within {self.timeout:g} s")
        except httpx.ConnectError as error:
            if "CERTIFICATE" in str(error).upper() or "SSL" in str(error).upper():
                raise EndpointError(f"{self.url}: TLS failed ({self.mask(str(error))})") from None
            return _Again("no server answers there")
        except httpx.TransportError as error:
            return _Again(f"the connection broke ({type(error).__name__})")
        return self._judge(response.status_code, response.headers, content)

    def _read(self, response: httpx.Response) -> bytes:
        """Return the body. Raises as httpx does where it drips slower than the timeout."""
        import httpx

        started, parts, size = time.monotonic(), [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > LARGEST_ANSWER:
                raise EndpointError(f"{self.url}: an answer is larger than {LARGEST_ANSWER >> 20} MiB")
            if time.monotonic() - started > self.timeout:
                raise httpx.ReadTimeout("slow")
        return b"".join(parts)

    def _judge(self, status: int, headers: httpx.Headers, content: bytes) -> _Content | _Again:
        said = self.mask(_message(content))
        if status == 429 or status >= 500:
            return _Again(f"answers {status}{f' ({said})' if said else ''}", _seconds(headers.get("retry-after")))
        if 300 <= status < 400:
            raise EndpointError(f"{self.url}: answers with a redirect ({status}), which is not followed; name that URL")
        if status in (401, 403):
            advice = f"the key in {self.key_env} is not accepted" if self.key_env else "it needs a key"
            raise EndpointError(f"{self.url}: answers {status}: {advice}")
        if status >= 400:
            raise RejectedError(f"{self.url}: answers {status}: {said}")
        try:
            return _Content(json.loads(content))
        except ValueError:
            raise EndpointError(f"{self.url}: answers what is not JSON: {self.mask(said, 80)}") from None


@dataclass(frozen=True)
class _Content:
    """What the server answered."""

    content: object


@dataclass(frozen=True)
class _Again:
    """Why a request should be sent again, and after how many seconds where the server says so."""

    reason: str
    after: float | None = None


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After, which is a number or a date; None where it is neither."""
    if not header:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _message(content: bytes) -> str:
    """Return what a server says of an error: the message of its JSON, or its text."""
    text = content[:4000].decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except ValueError:
        return text
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    return value if isinstance(value, str) else json.dumps(value)
