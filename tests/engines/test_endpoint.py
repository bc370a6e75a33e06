"""A server is asked in each dialect; what is wrong with it is named; a run that was killed resumes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hemorrhage.engines.endpoint import EndpointSession
from hemorrhage.engines.endpoint_dialects import DIALECTS, Vocabulary
from hemorrhage.engines.endpoint_http import EndpointError
from hemorrhage.engines.endpoint_spec import EndpointSpec
from hemorrhage.engines.protocol import Logits, Top
from tests.conftest import ROOT
from tests.engines.lying_server import Lying, Table, pieces, serving

SIZE = 64
VOCABULARY = Vocabulary(pieces(SIZE), pieces(SIZE), lambda tokens: "".join(f" w{token}" for token in tokens))
WINDOWS = [np.random.default_rng(seed).integers(SIZE, size=48).tolist() for seed in range(6)]
KEY = "sk-very-secret-0123456789"


def spec(url: str, **settings: object) -> EndpointSpec:
    return EndpointSpec.model_validate({"openai": url, "model": "tiny", "timeout": 3.0, "attempts": 3, **settings})


def session(url: str, kept: Path | None = None, **settings: object) -> EndpointSession:
    return EndpointSession(spec(url, **settings), VOCABULARY, kept)


def lying(*faults: str, dialects: Sequence[str] = ("prompt_logprobs", "echo"), **settings: object) -> Lying:
    return Lying(Table(), pieces(SIZE), faults=frozenset(faults), dialects=frozenset(dialects), **settings)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemorrhage.engines.endpoint_http.FIRST_PAUSE", 0.01)


PASSING = ("429", "500", "drop")
"""What may pass when it is asked again."""

CELLS = [
    *(pytest.param(dialect, (), id=dialect) for dialect in DIALECTS),
    *(
        pytest.param(dialect, (fault,), id=f"{dialect}-{fault}", marks=[pytest.mark.exhaustive] * (row != column))
        for row, fault in enumerate(PASSING)
        for column, dialect in enumerate(DIALECTS)
    ),
]
"""Every dialect without a fault, and every fault in one of them; the others are opt-in."""


@pytest.mark.parametrize(("dialect", "faults"), CELLS)
def test_an_honest_server_gives_the_models_log_probabilities_in_every_dialect(
    dialect: str, faults: tuple[str, ...]
) -> None:
    window = WINDOWS[0][:20] if dialect == "llama_cpp" else WINDOWS[0]
    with serving(lying(*faults, dialects=[dialect])) as url, session(url, attempts=8) as asked:
        asked.load(window)
        assert asked.tag == f"endpoint-{dialect}"
        answer = asked.ask(window)
    exact = Table()(window)[:-1]
    own = exact[np.arange(len(window) - 1), window[1:]]
    listed = ~np.isnan(answer.target)
    assert listed.all() or dialect == "llama_cpp"
    assert answer.target[listed] == pytest.approx(own[listed], abs=1e-6)
    assert (answer.ids == np.argsort(-exact, axis=1)[:, :20]).all()
    assert answer.logprobs == pytest.approx(np.take_along_axis(exact, answer.ids, 1), abs=1e-6)
    hidden = exact.copy()
    np.put_along_axis(hidden, answer.ids, -np.inf, 1)
    assert (hidden.max(1) <= answer.cap + 1e-6).all()


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.exhaustive] * (seed >= 4)) for seed in range(20)]
)
def test_an_honest_server_passes_twenty_times_of_twenty(seed: int) -> None:
    served = Lying(Table(seed=seed), pieces(SIZE), dialects=frozenset({("prompt_logprobs", "echo")[seed % 2]}))
    window = np.random.default_rng(seed).integers(SIZE, size=48).tolist()
    with serving(served) as url, session(url) as asked:
        asked.load(window)
        assert asked.notes == []


NAMED = {
    "echo-ignored": "echo is ignored",
    "other-name": "answers for the model 'other', not for 'tiny'",
    "unlisted": "has no model 'tiny'; it lists another",
    "rounded": "rounds log-probabilities to 2 decimals",
    "bfloat16": "rounds log-probabilities to bfloat16",
    "normalised": "normalises over the top k",
    "cut": "cuts log-probabilities at -2",
    "probabilities": "above 0",
    "unnormalised": "above 0|sum to",
    "shuffled": "another order",
    "reversed": "another order",
    "swapped": "of some tokens to others",
    "noisy": "does not repeat itself",
    "counted-template": "reads 50 tokens where 48 were sent",
    "temperature": "ignores temperature 0",
    "greedy": "ignores temperature 1.5",
    "other-vocabulary": "has another vocabulary: token",
    "larger-vocabulary": "has another vocabulary: it names token",
    "slow": "no answer within 1 s",
    "dripping": "no answer within 1 s",
    "always-429": r"answers 429 \(slow down\), 3 times; run again to resume",
    "always-drop": "the connection broke",
    "redirect": "redirect .* is not followed",
    "html": "not JSON",
    "nan": "gives no log-probability for 47 of the window's 47 tokens",
    "wants-key": "answers 401: it needs a key",
}
"""Fault -> what the line says."""

UNSEEN = {"larger-vocabulary": ["echo"], "bfloat16": [], "echo-ignored": ["prompt_logprobs"]}
"""Fault -> dialects in which it can't be planted."""


def planted() -> list[object]:
    """Every fault in one dialect, by turns; in the other one it is opt-in."""
    cells: list[object] = []
    for place, fault in enumerate(NAMED):
        turns = ["prompt_logprobs", "echo"] if place % 2 else ["echo", "prompt_logprobs"]
        seen = [dialect for dialect in turns if dialect not in UNSEEN.get(fault, ())]
        cells += [pytest.param(fault, seen[0], id=f"{fault}-{seen[0]}")]
        cells += [pytest.param(fault, each, id=f"{fault}-{each}", marks=pytest.mark.exhaustive) for each in seen[1:]]
    return cells


@pytest.mark.parametrize(("fault", "dialect"), planted())
def test_a_fault_is_named_in_one_line(fault: str, dialect: str) -> None:
    is_slow = fault in ("slow", "dripping")
    timeout, attempts = (1.0, 1) if is_slow else (3.0, 3)
    with serving(lying(fault, dialects=[dialect])) as url, session(url, timeout=timeout, attempts=attempts) as asked:
        with pytest.raises(EndpointError, match=NAMED[fault]) as raised:
            asked.load(WINDOWS[0])
        assert all(line.startswith(url) for line in str(raised.value).splitlines())


def test_the_top_5_is_a_note_and_no_fault() -> None:
    with serving(lying("top-5")) as url, session(url) as asked:
        asked.load(WINDOWS[0])
        assert asked.notes == ["gives the top 5 where the top 20 were asked: KL is an interval from 5"]
        answer = asked.ask(WINDOWS[1])
    exact = Table()(WINDOWS[1])[:-1]
    hidden = exact.copy()
    np.put_along_axis(hidden, np.maximum(answer.ids, 0), -np.inf, 1)
    hidden[np.arange(47), WINDOWS[1][1:]] = -np.inf
    assert (hidden.max(1) <= answer.cap + 1e-6).all()


@pytest.mark.parametrize("top", [5, 64])
def test_a_window_is_a_tile_of_the_protocol(top: int) -> None:
    with serving(lying()) as url, session(url, top=top) as asked:
        loaded = asked.load(WINDOWS[0])
        tiles = list(asked.score(np.array(WINDOWS[1], np.int32)))
    assert (loaded.vocabulary, loaded.gives, loaded.facts["dialect"]) == (SIZE, "top", "prompt_logprobs")
    exact = Table()(WINDOWS[1])[:-1]
    (tile,) = tiles
    assert tile.start == 0
    if top == SIZE:
        assert isinstance(tile, Logits)
        assert tile.values == pytest.approx(exact, abs=1e-5)
    else:
        assert isinstance(tile, Top)
        assert tile.log_probabilities == pytest.approx(np.take_along_axis(exact, tile.ids, 1), abs=1e-5)
        assert tile.targets == pytest.approx(exact[np.arange(47), WINDOWS[1][1:]], abs=1e-5)


def test_a_server_that_takes_only_text_is_asked_by_text() -> None:
    with serving(served := lying("text-only", dialects=["echo"])) as url, session(url) as asked:
        asked.load(WINDOWS[0])
        answer = asked.ask(WINDOWS[1])
    assert isinstance(served.seen[-1]["prompt"], str)
    assert answer.target == pytest.approx(Table()(WINDOWS[1])[np.arange(47), WINDOWS[1][1:]], abs=1e-6)


def test_samples_that_cannot_be_read_are_a_note() -> None:
    with serving(lying("no-sample-ids", dialects=["echo"])) as url, session(url) as asked:
        asked.load(WINDOWS[0])
        assert "its temperature is not checked" in asked.notes[0]


def test_a_named_dialect_is_the_only_one_that_is_tried() -> None:
    message = r"gives no log-probabilities of a prompt \(sglang: answers 404"
    with (
        serving(served := lying(dialects=["echo"])) as url,
        session(url, dialect="sglang") as asked,
        pytest.raises(EndpointError, match=message),
    ):
        asked.load(WINDOWS[0])
    assert {body["path"] for body in served.seen} == {"/generate"}


def test_a_url_that_ends_with_v1_is_the_only_folder_that_is_called() -> None:
    with serving(served := lying(dialects=["echo"])) as url, session(f"{url}/v1") as asked:
        asked.load(WINDOWS[0])
    assert {body["path"] for body in served.seen} == {"/v1/completions"}


def test_windows_are_asked_at_once_and_answered_in_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(lying(seconds=0.02)) as url, session(url, concurrency=3) as asked:
        asked.load(WINDOWS[0])
        answers = list(asked.ask_windows(WINDOWS))
    for answer, window in zip(answers, WINDOWS, strict=True):
        assert answer.target == pytest.approx(Table()(window)[np.arange(47), window[1:]], abs=1e-6)
    announced = next(record.getMessage() for record in caplog.records if "windows to ask" in record.getMessage())
    assert "6 of 6 windows to ask, 6 requests, 294 tokens" in announced
    assert "3 at a time; limits: 200,000 tokens, 3600 s" in announced


def test_no_more_than_the_concurrency_is_under_way() -> None:
    served = lying(seconds=0.03)
    running: list[int] = []
    inside = [0]
    answer = served.answer

    def counted(path: str, body: dict[str, object]) -> tuple[int, object]:
        with served.lock:
            inside[0] += 1
            running.append(inside[0])
        time.sleep(0.03)
        with served.lock:
            inside[0] -= 1
        return answer(path, body)

    served.answer = counted  # type: ignore[method-assign]
    with serving(served) as url, session(url, concurrency=2) as asked:
        asked.load(WINDOWS[0])
        list(asked.ask_windows(WINDOWS))
    assert max(running) == 2


def test_beyond_the_token_budget_nothing_is_asked() -> None:
    with serving(served := lying()) as url, session(url, max_tokens=500) as asked:
        asked.load(WINDOWS[0])
        before = len(served.seen)
        with pytest.raises(EndpointError, match=r"294 tokens, .* too many tokens; raise max_tokens"):
            list(asked.ask_windows(WINDOWS))
        assert len(served.seen) == before


def test_beyond_the_time_budget_it_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    # A text is asked for once: 40 of them take 2 s at least.
    windows = np.random.default_rng(0).integers(SIZE, size=(40, 48)).tolist()
    with serving(lying(seconds=0.05)) as url:
        with session(url, tmp_path, concurrency=1, max_seconds=0.6) as asked:
            asked.load(windows[0], samples=False)
            with pytest.raises(EndpointError, match="time budget is used up; run again to resume"):
                list(asked.ask_windows(windows))
        assert list(tmp_path.iterdir())


def test_kept_windows_are_not_asked_again(tmp_path: Path) -> None:
    with serving(served := lying()) as url:
        with session(url, tmp_path) as asked:
            asked.load(WINDOWS[0])
            first = list(asked.ask_windows(WINDOWS[:4]))
        before = [body for body in served.seen if body["prompt"] in WINDOWS[1:4]]
        with session(url, tmp_path) as asked:
            asked.load(WINDOWS[0])
            again = list(asked.ask_windows(WINDOWS))
        after = [body for body in served.seen if body["prompt"] in WINDOWS[1:4]]
    assert len(before) == len(after) == 3
    assert all((a.logprobs == b.logprobs).all() and (a.ids == b.ids).all() for a, b in zip(first, again, strict=False))


def test_a_server_that_serves_something_else_since_the_run_before_is_named(tmp_path: Path) -> None:
    with serving(served := lying()) as url:
        with session(url, tmp_path) as asked:
            asked.load(WINDOWS[0])
            list(asked.ask_windows(WINDOWS[:3]))
        served.model = Table(seed=1)
        with session(url, tmp_path) as asked:
            asked.load(WINDOWS[0])
            with pytest.raises(EndpointError, match="answers otherwise than in the run before"):
                list(asked.ask_windows(WINDOWS))


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def start_server(port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "tests.engines.lying_server", str(port)], cwd=ROOT)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise AssertionError("the server did not start")


CLIENT = """
import sys
from pathlib import Path
from tests.engines.test_endpoint import WINDOWS, session
with session(sys.argv[1], Path(sys.argv[2]), concurrency=1) as asked:
    asked.load(WINDOWS[0], samples=False)
    print(len([*asked.ask_windows(WINDOWS)]))
"""


def test_a_killed_server_and_a_killed_client_resume_at_the_next_window(tmp_path: Path) -> None:
    port = free_port()
    url, kept = f"http://127.0.0.1:{port}", tmp_path / "kept"
    server = start_server(port)
    try:
        with session(url, kept, concurrency=1) as asked:
            asked.load(WINDOWS[0], samples=False)
            answers = asked.ask_windows(WINDOWS)
            next(answers)
            server.send_signal(signal.SIGKILL)
            server.wait()
            with pytest.raises(EndpointError, match="run again to resume"):
                list(answers)
        of_first = len(list(kept.iterdir()))
        assert 1 <= of_first < len(WINDOWS)

        server = start_server(port)
        command = [sys.executable, "-c", CLIENT, url, str(kept)]
        client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(600):
            if len([*kept.glob("*.npz")]) > of_first:
                break
            time.sleep(0.02)
        os.killpg(client.pid, signal.SIGKILL)
        client.communicate()
        of_second = len(list(kept.glob("*.npz")))
        assert of_second > of_first

        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(len(WINDOWS))
    finally:
        server.kill()
        server.wait()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_is_not_there_is_one_line() -> None:
    with (
        session(f"http://127.0.0.1:{free_port()}") as asked,
        pytest.raises(EndpointError, match="no server answers there, 3 times"),
    ):
        asked.load(WINDOWS[0])


@pytest.mark.parametrize("fault", ["says-key", "always-429", "always-drop", "html", "other-name"])
def test_the_key_is_in_the_header_and_nowhere_else(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serving(served := lying(fault)) as url, session(url, tmp_path, key_env="TINY_KEY") as asked:
        with pytest.raises(EndpointError) as raised:
            asked.load(WINDOWS[0])
        shown = f"{raised.value!r} {raised.getrepr(showlocals=False)} {asked.spec!r} {asked!r} {asked._client!r}"
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in served.headers)
    assert KEY not in shown
    assert KEY not in caplog.text
    assert "***" in shown or fault != "says-key"


def test_answers_on_the_disk_hold_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINY_KEY", KEY)
    with serving(lying("wants-key", key=KEY)) as url, session(url, tmp_path, key_env="TINY_KEY") as asked:
        asked.load(WINDOWS[0])
        list(asked.ask_windows(WINDOWS))
    files = [*tmp_path.iterdir()]
    assert len(files) == len(WINDOWS)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_a_session_that_is_not_loaded_and_a_short_probe_are_one_line() -> None:
    with session("http://127.0.0.1") as asked:
        with pytest.raises(EndpointError, match="not loaded"):
            asked.ask(WINDOWS[0])
        with pytest.raises(EndpointError, match="at least 16 tokens"):
            asked.load([1, 2, 3])
