"""A page in headless Chromium that can be looked at and typed into, through Chromium's DevTools pipe."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.screenshot import headless

KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "End": 35}


class Page:
    """An open page."""

    def __init__(self, to: int, back: int) -> None:
        """``to`` and ``back``: the pipe's descriptors."""
        self._to, self._back, self._rest, self._last = to, back, b"", 0
        self._session: str | None = None
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def go(self, html: Path) -> None:
        """Open a file, and wait until it has loaded."""
        self._call("Page.navigate", url=html.resolve().as_uri())
        while self.run("location.protocol + document.readyState") != "file:complete":
            time.sleep(0.05)

    def resize(self, width: int, height: int) -> None:
        """Give the window a size, however small."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key of KEYS."""
        text = {"Enter": "\r", " ": " "}.get(key)
        code = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        down = {"type": "keyDown" if text else "rawKeyDown"} | ({"text": text} if text else {})
        for kind in (down, {"type": "keyUp"}):
            self._call("Input.dispatchKeyEvent", **kind, **code)

    def _call(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            piece = os.read(self._back, 2**16)
            if not piece:
                raise EOFError("the browser closed its pipe")
            self._rest += piece
        answer, _, self._rest = self._rest.partition(b"\0")
        return json.loads(answer)


@contextlib.contextmanager
def opened(html: Path) -> Iterator[Page]:
    """A page that has loaded, in a fresh profile."""
    command = headless()
    theirs, to = os.pipe()
    back, ours = os.pipe()

    def descriptors() -> None:
        # The pipe is 3 and 4 there; first out of the way of both.
        kept = os.dup(theirs), os.dup(ours)
        os.dup2(kept[0], 3)
        os.dup2(kept[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [*command, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=descriptors,
            close_fds=False,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        try:
            page = Page(to, back)
            page.go(html)
            yield page
        finally:
            process.terminate()
            process.wait(30)
            os.close(to)
            os.close(back)
