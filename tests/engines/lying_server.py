"""A server on the loopback interface that answers in every dialect from a known model, with faults on request.

    python -m tests.engines.lying_server PORT [FAULT...]

``Table`` is a language model of two tables, cheap enough for a test; ``Network`` one of transformers.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = NDArray[np.float64]

FAULTS = frozenset({
    "echo-ignored", "other-name", "unlisted", "top-5", "rounded", "bfloat16", "normalised", "cut", "probabilities",
    "unnormalised", "shuffled", "reversed", "swapped", "noisy", "template", "counted-template", "temperature",
    "greedy", "other-vocabulary", "larger-vocabulary", "slow", "dripping", "429", "always-429", "500", "drop",
    "always-drop", "redirect", "html", "not-json", "nan", "text-only", "no-sample-ids", "says-key", "wants-key",
    "ignores-ids",
})  # fmt: skip


class Model(Protocol):
    """A language model: log-probabilities of the next token after each of ``tokens`` ``[n]``: ``[n, vocabulary]``."""

    def __call__(self, tokens: Sequence[int]) -> Floats: ...


class Table:
    """A model of two tables: logits are the sum of a row for the last token and one for the token before it."""

    def __init__(self, vocabulary: int = 64, seed: int = 0, bits: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.tables = rng.normal(0, 1.5, (2, vocabulary, vocabulary))
        if bits is not None:
            step = np.abs(self.tables).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
            self.tables = np.round(self.tables / step) * step

    def __call__(self, tokens: Sequence[int]) -> Floats:
        now = np.array(tokens)
        logits = self.tables[0][now] + self.tables[1][np.concatenate([[0], now[:-1]])]
        logits = logits - logits.max(-1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


class Network:
    """A model of transformers, in the dtype it has."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.lock = threading.Lock()

    def __call__(self, tokens: Sequence[int]) -> Floats:
        import torch

        # One request at a time: a model of transformers is not made for several threads.
        with self.lock, torch.inference_mode():
            logits = self.model(torch.tensor([list(tokens)])).logits[0].double()
        return np.asarray(torch.log_softmax(logits, -1).numpy())


def pieces(vocabulary: int) -> list[str]:
    """The text of each token of a Table."""
    return [f" w{token}" for token in range(vocabulary)]


@dataclass
class Lying:
    """What a server does: its model, its name for it, the dialects it knows, its faults."""

    model: Model
    texts: Sequence[str]
    name: str = "tiny"
    faults: frozenset[str] = frozenset()
    dialects: frozenset[str] = frozenset({"prompt_logprobs", "echo"})
    template: tuple[int, ...] = (1, 2)
    seconds: float = 0.0
    key: str | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        assert self.faults <= FAULTS, self.faults - FAULTS

    def scores(self, tokens: Sequence[int]) -> Floats:
        """Log-probabilities at each position of a prompt but the first, ``[n - 1, vocabulary]``, in float32."""
        before = self.template if {"template", "counted-template"} & self.faults else ()
        values = self.model([*before, *tokens])[len(before) : -1]
        if "noisy" in self.faults:
            values = values + np.random.default_rng().normal(0, 0.5, values.shape)
        if "shuffled" in self.faults:
            values = values[np.random.default_rng(len(tokens)).permutation(len(values))]
        if "reversed" in self.faults:
            values = values[::-1]
        return values.astype(np.float32).astype(np.float64)

    def spoken(self, value: float) -> float:
        """A log-probability as it is said."""
        if "rounded" in self.faults:
            return round(value, 2)
        if "bfloat16" in self.faults:
            return float((np.array([value], np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)[0])
        if "cut" in self.faults:
            return max(value, -2.0)
        if "probabilities" in self.faults:
            return float(np.exp(value))
        if "unnormalised" in self.faults:
            return value + 0.7
        if "nan" in self.faults:
            return float("nan")
        return value

    def likeliest(self, row: Floats, top: int) -> list[tuple[int, float]]:
        """The top tokens of one position with what is said of them."""
        top = min(top, 5) if "top-5" in self.faults else top
        ids = np.argsort(-row, kind="stable")[:top]
        values = row[ids]
        if "normalised" in self.faults:
            values = values - np.log(np.exp(values).sum())
        if "swapped" in self.faults:
            values = values[::-1]
        shift = len(row) if "larger-vocabulary" in self.faults else 0
        return [(int(token) + shift, self.spoken(float(value))) for token, value in zip(ids, values, strict=True)]

    def text(self, token: int) -> str:
        """What this server calls a token."""
        own = self.texts[token % len(self.texts)]
        return f"{own}x" if "other-vocabulary" in self.faults else own

    def generate(self, prompt: Sequence[int], count: int, temperature: float, seed: int) -> list[int]:
        """Sample tokens after a prompt."""
        temperature = 1.0 if "temperature" in self.faults else 0.0 if "greedy" in self.faults else temperature
        before = self.template if {"template", "counted-template"} & self.faults else ()
        rng, tokens = np.random.default_rng(seed), [*before, *prompt]
        for _ in range(count):
            row = self.model(tokens)[-1]
            noise = rng.gumbel(size=len(row)) if temperature else 0.0
            tokens.append(int(np.argmax(row / (temperature or 1.0) + noise)))
        return tokens[len(before) + len(prompt) :]

    def prompt(self, given: object) -> list[int] | None:
        """The tokens of a prompt, None where it is refused."""
        if isinstance(given, str):
            return [self.texts.index(f" {word}") for word in given.split()]
        return None if "text-only" in self.faults else list(given)  # type: ignore[call-overload]

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and content of an answer."""
        if path == "/v1/completions":
            tokens = self.prompt(body["prompt"])
            if tokens is None:
                return 400, {"error": {"message": "prompt must be a string"}}
            return 200, self.completion(tokens, body)
        if path == "/generate" and "sglang" in self.dialects:
            return 200, self.sglang(body)
        if path == "/completion" and "llama_cpp" in self.dialects:
            return 200, self.llama(body)
        return 404, {"error": {"message": f"no {path}"}}

    def completion(self, tokens: list[int], body: dict[str, Any]) -> dict[str, Any]:
        """What /v1/completions answers."""
        count = int(body["max_tokens"])
        made = self.generate(tokens, count, body.get("temperature", 1.0), body.get("seed", 0))
        choice: dict[str, Any] = {"index": 0, "text": "".join(map(self.text, made)), "finish_reason": "length"}
        if "prompt_logprobs" in self.dialects and body.get("return_token_ids"):
            choice["token_ids"] = made
        if "prompt_logprobs" in self.dialects and "prompt_logprobs" in body:
            rows: list[dict[str, Any] | None] = [None]
            for row, token in zip(self.scores(tokens), tokens[1:], strict=True):
                given = dict([(token, self.spoken(float(row[token]))), *self.likeliest(row, body["prompt_logprobs"])])
                ranks = {int(each): rank for rank, each in enumerate(np.argsort(-row, kind="stable"), 1)}
                rows.append({
                    str(each): {"logprob": value, "rank": ranks.get(each, 1), "decoded_token": self.text(each)}
                    for each, value in given.items()
                })  # fmt: skip
            choice["prompt_logprobs"] = rows
        if body.get("logprobs") is not None and "echo" in self.dialects:
            echoed = tokens if body.get("echo") and "echo-ignored" not in self.faults else []
            choice["logprobs"] = self.echo(echoed, made, body["logprobs"])
        extra = len(self.template) if "counted-template" in self.faults else 0
        return {
            "object": "text_completion",
            "model": "other" if "other-name" in self.faults else self.name,
            "choices": [choice],
            "usage": {"prompt_tokens": len(tokens) + extra, "completion_tokens": count},
        }

    def echo(self, tokens: list[int], made: list[int], top: int) -> dict[str, Any]:
        """The logprobs of a completion: of the prompt where it is echoed, then of what was generated."""
        own: list[float | None] = [None] if tokens else []
        tops: list[dict[str, float] | None] = [None] if tokens else []
        for row, token in zip(self.scores(tokens) if tokens else [], tokens[1:], strict=True):
            own.append(self.spoken(float(row[token])))
            tops.append({self.text(each): value for each, value in self.likeliest(row, top)})
        texts = [self.text(token) for token in [*tokens, *made]]
        if "no-sample-ids" in self.faults and not tokens:
            texts = ["�" for _ in texts]
        return {
            "tokens": texts,
            "token_logprobs": [*own, *(-1.5 for _ in made)],
            "top_logprobs": [*tops, *({} for _ in made)],
        }

    def sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        """What /generate answers."""
        tokens, params = body["input_ids"], body["sampling_params"]
        made = self.generate(tokens, params["max_new_tokens"], params["temperature"], params.get("sampling_seed", 0))
        meta: dict[str, Any] = {"prompt_tokens": len(tokens), "output_token_logprobs": [[-1.0, t, None] for t in made]}
        if body.get("logprob_start_len") == 0:
            rows = self.scores(tokens)
            own = [self.spoken(float(row[token])) for row, token in zip(rows, tokens[1:], strict=True)]
            meta["input_token_logprobs"] = [[None, tokens[0], None]] + [
                [value, token, None] for value, token in zip(own, tokens[1:], strict=True)
            ]
            meta["input_top_logprobs"] = [None] + [
                [[value, token, None] for token, value in self.likeliest(row, body["top_logprobs_num"])] for row in rows
            ]
        return {"text": "", "meta_info": meta}

    def llama(self, body: dict[str, Any]) -> dict[str, Any]:
        """What llama-server's /completion answers."""
        tokens = body["prompt"]
        made = self.generate(tokens, body["n_predict"], body["temperature"], body.get("seed", 0))
        answered: dict[str, Any] = {
            "model": self.name, "tokens_evaluated": len(tokens), "tokens": made if body.get("return_tokens") else [],
        }  # fmt: skip
        if body.get("n_probs"):
            row = self.scores([*tokens, 0])[-1]
            top = [{"id": token, "logprob": value} for token, value in self.likeliest(row, body["n_probs"])]
            answered["completion_probabilities"] = [{**top[0], "top_logprobs": top}]
        return answered


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, content: object, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "dripping" not in self.server.lying.faults:
            self.wfile.write(body)
            return
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.05)

    def instead(self) -> tuple[int, object, dict[str, str]] | None:
        """What a fault answers instead; every second request where it does not always happen. Status 0: nothing."""
        lying, odd = self.server.lying, len(self.server.lying.seen) % 2
        said = self.headers.get("Authorization", "")
        answers: dict[str, tuple[bool, tuple[int, object, dict[str, str]]]] = {
            "wants-key": (said != f"Bearer {lying.key}", (401, {"error": {"message": "no"}}, {})),
            "always-429": (True, (429, {"error": {"message": "slow down"}}, {"Retry_After": "0"})),
            "429": (bool(odd), (429, {"error": {"message": "slow down"}}, {"Retry_After": "0"})),
            "500": (bool(odd), (503, b"busy", {})),
            "always-drop": (True, (0, b"", {})),
            "drop": (bool(odd), (0, b"", {})),
            "redirect": (True, (307, b"", {"Location": "http://127.0.0.1:9/v1/completions"})),
            "html": (True, (200, b"<html>hello</html>", {})),
            "says-key": (True, (400, {"error": {"message": f"bad request, headers: {said}"}}, {})),
        }
        due = [answer for fault, (applies, answer) in answers.items() if fault in lying.faults and applies]
        return due[0] if due else None

    def is_hindered(self) -> bool:
        """Do what a fault says instead of an answer."""
        if (instead := self.instead()) is None:
            return False
        status, content, headers = instead
        if status:
            self.send(status, content, **headers)
        else:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def do_GET(self) -> None:
        if not self.is_hindered():
            lying = self.server.lying
            names = ["another"] if "unlisted" in lying.faults else [lying.name]
            self.send(200, {"object": "list", "data": [{"id": name} for name in names]})

    def do_POST(self) -> None:
        lying = self.server.lying
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lying.lock:
            lying.seen.append({"path": self.path, **body})
            lying.headers.append(dict(self.headers))
        if not self.is_hindered():
            time.sleep(5.0 if "slow" in lying.faults else lying.seconds)
            self.send(*lying.answer(self.path, body))


class Server(ThreadingHTTPServer):
    """A server on the loopback interface."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, lying: Lying) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lying = lying

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that are gone."""


@contextmanager
def serving(lying: Lying, server: Server | None = None) -> Iterator[str]:
    """The URL of a running server, which ``server`` replaces."""
    server = server or Server(0, lying)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve a Table until killed; see the module's docstring."""
    port, *named = sys.argv[1:]
    Server(int(port), Lying(Table(), pieces(64), faults=frozenset(named), seconds=0.05)).serve_forever()


if __name__ == "__main__":
    main()
