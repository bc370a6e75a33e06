"""A model behind a URL: log-probabilities of windows of tokens, and tokens that it samples.

A session asks the server a few things before it is trusted (hemorrhage.engines.endpoint_faults), says what the windows
will cost, and keeps each window's answer on disk, so that a run that was killed resumes at the next window.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hemorrhage.engines import endpoint_faults as faults
from hemorrhage.engines.client import Loaded
from hemorrhage.engines.endpoint_dialects import DIALECTS, Answer, Dialect, Prompt, Sample, UnreadableError, Vocabulary
from hemorrhage.engines.endpoint_http import Client, EndpointError, LostError, RejectedError
from hemorrhage.engines.endpoint_spec import EndpointSpec
from hemorrhage.engines.protocol import Logits, Tile, Top
from hemorrhage.runtime.artifact import whole

PROBE_WINDOW = 48
"""Tokens of the window that a server is tried on."""

GREEDY, WARM, WARM_TEMPERATURE = 12, 24, 1.5
"""Tokens that are sampled at temperature 0, and at another."""

Asked = TypeVar("Asked")

log = logging.getLogger(__name__)


class EndpointSession:
    """A trusted connection to a server, for several threads; ``load`` and ``score`` as a session with an engine has.

    ``kept``: a folder where answers are kept; ``notes``: what a user should know, one line each.
    """

    def __init__(self, spec: EndpointSpec, vocabulary: Vocabulary, kept: Path | None = None) -> None:
        self.spec, self.vocabulary, self.kept = spec, vocabulary, kept
        self.notes: list[str] = []
        self.tokens = 0
        self.top = min(spec.top, len(vocabulary))
        self._client = Client(spec.openai, spec.key_env, spec.timeout, spec.attempts)
        self._name: str | None = None
        self._as_text = False
        self._lock = threading.Lock()
        self._seconds = 0.0

    def __enter__(self) -> EndpointSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def dialect(self) -> Dialect:
        """How the server is asked. Raises EndpointError before ``load``."""
        if self._name is None:
            raise EndpointError(f"{self.spec.openai}: the session is not loaded")
        return DIALECTS[self._name]

    @property
    def tag(self) -> str:
        """Name in the tag of a protocol: ``endpoint-echo``."""
        return f"endpoint-{self._name}"

    def load(self, window: Sequence[int], samples: bool = True) -> Loaded:
        """Find out how the server is asked, and whether it may be trusted; ``samples``: with tokens that it samples.

        ``window``: tokens to try it on. Raises EndpointError, a line of which names each fault.
        """
        self._client.deadline = time.monotonic() + self.spec.max_seconds
        probe, began = list(window[:PROBE_WINDOW]), time.monotonic()
        if len(probe) < faults.ENOUGH:
            raise EndpointError(f"a server is tried on at least {faults.ENOUGH} tokens, not {len(probe)}")
        self._check_listed()
        first = self._choose_dialect(lambda: self._ask(probe), "gives no log-probabilities of a prompt")
        started = time.monotonic()
        named = self._faults(first, probe) + faults.in_values([first], len(self.vocabulary))
        named = faults.between(first, self._ask(probe), "does not repeat itself when asked the same twice") or named
        named = named or self._questions(probe, first, samples)
        self._seconds = (time.monotonic() - started) / max(self._client.requests - 1, 1)
        if named:
            lines = [self._client.mask(line) for line in dict.fromkeys(named)]
            raise EndpointError("\n".join(f"{self.spec.openai}: {line}" for line in lines))
        self.notes += faults.limits([first], self.top)
        for note in self.notes:
            log.warning("%s: %s", self.spec.openai, note)
        facts = {"dialect": str(self._name), "model": self.spec.model, "notes": "; ".join(self.notes)}
        return Loaded(len(self.vocabulary), "top", facts, time.monotonic() - began)

    def _questions(self, probe: Sequence[int], first: Answer, samples: bool) -> list[str]:
        """Ask again in other ways, and list what is wrong."""
        prompt = probe[: len(probe) // 2]
        order = "depends on later tokens, or puts positions into another order"
        named = faults.between(first, self._ask(prompt), order)
        return named or (self._sampled(prompt) if samples else [])

    def _faults(self, answer: Answer, tokens: Sequence[int]) -> list[str]:
        is_complete = not self.dialect.per_position
        return faults.in_answer(answer, tokens, self.vocabulary, self.spec.model, is_complete)

    def _sampled(self, prompt: Sequence[int]) -> list[str]:
        """List what is wrong with tokens that the server samples."""
        try:
            greedy = [*prompt, *self.sample(prompt, GREEDY, 0.0, seed=0).tokens]
            warm = [*prompt, *self.sample(prompt, WARM, WARM_TEMPERATURE, seed=1).tokens]
        except UnreadableError as error:
            self.notes.append(f"the tokens it samples can't be read, its temperature is not checked: {error}")
            return []
        named = faults.in_greedy(self._ask(greedy), len(prompt))
        return named + faults.in_sampled(self._ask(warm), len(prompt), WARM_TEMPERATURE)

    def _check_listed(self) -> None:
        """Raise where the server lists its models and the wanted is not among them; not all servers list them."""
        try:
            content = self._client.get(self._path("/models"))
        except LostError:
            raise
        except EndpointError as error:
            if "key" in str(error) or "redirect" in str(error) or "TLS" in str(error):
                raise
            return
        listed = content.get("data") if isinstance(content, dict) else None
        names = [str(each["id"]) for each in listed or () if isinstance(each, dict) and "id" in each]
        if names and self.spec.model not in names:
            shown = self._client.mask(", ".join(names[:8]))
            raise EndpointError(f"{self.spec.openai}: has no model {self.spec.model!r}; it lists {shown}")

    def _path(self, path: str) -> str:
        """Return a path of the completions API, which lies below /v1, or of a server's own, which does not."""
        is_below = self.spec.openai.rstrip("/").endswith("/v1")
        return path if is_below or path not in ("/completions", "/models") else f"/v1{path}"

    def load_sampler(self, prompt: Sequence[int]) -> None:
        """Find out how tokens are sampled, of a server that may give no log-probabilities. Raises EndpointError."""
        self._client.deadline = time.monotonic() + self.spec.max_seconds
        self._check_listed()
        self._choose_dialect(lambda: self.sample(prompt, 2, 1.0, seed=0), "samples no tokens that can be read")

    def _choose_dialect(self, ask: Callable[[], Asked], otherwise: str) -> Asked:
        """Return what the server says in the first dialect that it knows."""
        names = list(DIALECTS) if self.spec.dialect == "auto" else [self.spec.dialect]
        reasons = []
        for name in names:
            self._name = name
            for as_text in (False, True) if self.dialect.takes_text else (False,):
                self._as_text = as_text
                try:
                    return ask()
                except RejectedError as error:
                    reasons.append(f"{name}: {str(error).removeprefix(f'{self.spec.openai}: ')}")
                except UnreadableError as error:
                    reasons.append(f"{name}: {self._client.mask(str(error))}")
                    break
        self._name = None
        raise EndpointError(f"{self.spec.openai}: {otherwise} ({'; '.join(reasons)})")

    def announce(self, windows: Sequence[Sequence[int]]) -> str:
        """Return what the windows will cost. Raises EndpointError where it is beyond the budget."""
        left = [window for window in windows if not self._is_kept(window)]
        requests = sum(len(window) - 1 if self.dialect.per_position else 1 for window in left)
        tokens = sum(self._cost(window) for window in left)
        seconds = requests * self._seconds / self.spec.concurrency
        line = (
            f"{self.spec.openai}: {len(left)} of {len(windows)} windows to ask, {requests:,} requests,"
            f" {tokens:,} tokens, about {seconds:.0f} s at {self.spec.concurrency} at a time;"
            f" limits: {self.spec.max_tokens:,} tokens, {self.spec.max_seconds:.0f} s"
        )
        if self.tokens + tokens > self.spec.max_tokens:
            raise EndpointError(f"{line}: too many tokens; raise max_tokens, or ask for fewer windows")
        return line

    def _cost(self, window: Sequence[int]) -> int:
        """Return the tokens of a window that are read and generated."""
        count = len(window)
        return (count - 1) * (count + 2) // 2 if self.dialect.per_position else count + 1

    def score(self, tokens: NDArray[np.int32]) -> Iterator[Tile]:
        """Yield the one tile of a text ``tokens`` [n], which has the positions 0 to n - 2.

        It is of logits where the server gives the whole vocabulary. In a top, an id is -1 where there are fewer than k,
        with minus infinity, and a target is nan where the server does not give it. Raises EndpointError.
        """
        answer = self.ask(tokens.tolist())
        values = np.where(answer.ids < 0, -np.inf, answer.logprobs).astype(np.float32)
        if answer.ids.shape[1] == len(self.vocabulary) and (answer.ids >= 0).all():
            logits = np.empty_like(values)
            np.put_along_axis(logits, answer.ids, values, axis=1)
            yield Logits(0, logits)
        else:
            yield Top(0, answer.ids.astype(np.int32), values, answer.target.astype(np.float32))

    def ask(self, tokens: Sequence[int]) -> Answer:
        """Return the log-probabilities of a window, from the disk where they are kept. Raises EndpointError."""
        file = self._file(tokens)
        if file is not None and file.is_file():
            return _read(file)
        answer = self._ask(tokens)
        named = self._faults(answer, tokens)
        if named:
            raise EndpointError(f"{self.spec.openai}: {self._client.mask(named[0])}")
        if file is not None:
            with whole(file) as part, part.open("wb") as stream:
                np.savez(stream, target=answer.target, ids=answer.ids, logprobs=answer.logprobs, cap=answer.cap)
        return answer

    def ask_windows(self, windows: Sequence[Sequence[int]]) -> Iterator[Answer]:
        """Yield the answer of each window in order, ``concurrency`` asked at a time.

        Raises EndpointError where one can't be had; those before it are kept.
        """
        log.info("%s", self.announce(windows))
        self._check_kept(windows)
        waiting: deque[Future[Answer]] = deque()
        with ThreadPoolExecutor(self.spec.concurrency) as pool:
            try:
                for window in windows:
                    waiting.append(pool.submit(self.ask, window))
                    if len(waiting) >= 2 * self.spec.concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _check_kept(self, windows: Sequence[Sequence[int]]) -> None:
        """Raise where windows are left to ask, and the server answers a kept one in another way than before."""
        kept = [window for window in windows if self._is_kept(window)]
        if kept and len(kept) < len(windows):
            named = faults.between(self.ask(kept[0]), self._ask(kept[0]), "answers otherwise than in the run before")
            if named:
                raise EndpointError(f"{self.spec.openai}: {named[0]}; remove {self.kept} to begin anew")

    def sample(self, prompt: Sequence[int], count: int, temperature: float, seed: int) -> Sample:
        """Return ``count`` tokens that the server generates after a prompt. Raises EndpointError."""
        self._spend(len(prompt) + count)
        body = self.dialect.sample(self.spec.model, self._prompt(prompt), count, temperature, seed)
        content = self._client.post(self._path(self.dialect.path), body)
        sample = self.dialect.read_sample(content, self.vocabulary)
        if sample.model not in (None, self.spec.model):
            said = self._client.mask(f"answers for the model {sample.model!r}, not for {self.spec.model!r}")
            raise EndpointError(f"{self.spec.openai}: {said}")
        if not sample.tokens or max(sample.tokens) >= len(self.vocabulary):
            raise EndpointError(f"{self.spec.openai}: samples no tokens, or those of another vocabulary")
        return sample

    def _ask(self, tokens: Sequence[int]) -> Answer:
        """Return a window's log-probabilities as the server gives them."""
        if not self.dialect.per_position:
            return self._ask_once(tokens, tokens)
        parts = [self._ask_once(tokens[:end], tokens[: end + 1]) for end in range(1, len(tokens))]
        added = [part.read - end for end, part in enumerate(parts, 2) if part.read is not None]
        return Answer(
            target=np.concatenate([part.target for part in parts]),
            ids=np.concatenate([part.ids for part in parts]),
            logprobs=np.concatenate([part.logprobs for part in parts]),
            cap=np.concatenate([part.cap for part in parts]),
            is_ordered=all(part.is_ordered for part in parts),
            model=next((part.model for part in parts if part.model not in (None, self.spec.model)), parts[0].model),
            read=len(tokens) + max(added) if added else None,
        )

    def _ask_once(self, prompt: Sequence[int], tokens: Sequence[int]) -> Answer:
        self._spend(len(prompt) + 1)
        body = self.dialect.score(self.spec.model, self._prompt(prompt), self.top)
        content = self._client.post(self._path(self.dialect.path), body)
        return self.dialect.read_answer(content, list(tokens), self.top, self.vocabulary)

    def _prompt(self, tokens: Sequence[int]) -> Prompt:
        return self.vocabulary.decode(tokens) if self._as_text else [int(token) for token in tokens]

    def _spend(self, tokens: int) -> None:
        with self._lock:
            if self.tokens + tokens > self.spec.max_tokens:
                raise LostError(f"{self.spec.openai}: the budget of {self.spec.max_tokens:,} tokens is used up")
            self.tokens += tokens

    def _file(self, tokens: Sequence[int]) -> Path | None:
        if self.kept is None:
            return None
        asked = [self.spec.openai, self.spec.model, self._name, self._as_text, self.top, [int(each) for each in tokens]]
        return self.kept / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.npz"

    def _is_kept(self, tokens: Sequence[int]) -> bool:
        file = self._file(tokens)
        return file is not None and file.is_file()


FIELDS = ("target", "ids", "logprobs", "cap")


def _read(file: Path) -> Answer:
    with np.load(file) as arrays:
        return Answer(*(arrays[name] for name in FIELDS))
