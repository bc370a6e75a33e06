"""Sessions with a worker that has no engine: what it answers, how it fails, and that nothing of it outlives anybody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hemorrhage.engines.client import RESTARTS, Session, WorkerDiedError
from hemorrhage.engines.environment import EngineError, NotInstalledError
from hemorrhage.engines.protocol import Hidden, Logits, Top
from hemorrhage.engines.registry import Engine
from tests.engines import fake_worker
from tests.engines.fake_worker import ABORT, FRAMELESS, HANG, KILL_AT_ROW, NAN, REFUSE, SHORT

FAKE = Engine(name="fake", title="Fake", version="1.0", reads="hf")

TEXT = np.array([3, 1, 2, 0, 3, 1, 2, 2, 1, 0], np.int32)


def opened(patience: float = 30.0, log: Path | None = None) -> Session:
    worker = Path(fake_worker.__file__)
    return Session(FAKE, python=Path(sys.executable), worker=worker, patience=patience, log=log)


@pytest.fixture(scope="module")
def shared() -> Iterator[Session]:
    with opened() as session:
        yield session


def loaded(session: Session, gives: str = "logits") -> int:
    """Load a model and return the id of the process that its engine started."""
    model = session.load(Path("/models") / gives, threads=1, context=64)
    assert model.gives == gives
    assert model.vocabulary == fake_worker.VOCABULARY
    return int(model.facts["child"])


def logits(session: Session, tokens: NDArray[np.int32] = TEXT) -> NDArray[np.float32]:
    tiles = list(session.score(tokens))
    assert all(isinstance(tile, Logits) for tile in tiles)
    return np.concatenate([tile.values for tile in tiles if isinstance(tile, Logits)])


def beginning(token: int) -> NDArray[np.int32]:
    return np.array([token, *TEXT], np.int32)


def is_gone(process: int, seconds: float = 5.0) -> bool:
    """Tell whether a process ends within some seconds; one that nobody has waited for is over, too."""
    for _ in range(int(seconds * 50)):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_tiles_are_the_whole_text_in_order(shared: Session) -> None:
    loaded(shared)
    tiles = list(shared.score(TEXT))
    assert [tile.start for tile in tiles] == [0, 4, 8]
    assert np.array_equal(logits(shared), fake_worker.logits(TEXT[:-1]))
    assert np.array_equal(logits(shared, TEXT[:2]), fake_worker.logits(TEXT[:1]))


def test_the_other_kinds_of_tiles(shared: Session) -> None:
    loaded(shared, "hidden")
    assert all(isinstance(tile, Hidden) and not tile.final_norm for tile in shared.score(TEXT))
    loaded(shared, "top")
    tiles = [tile for tile in shared.score(TEXT) if isinstance(tile, Top)]
    expected = fake_worker.logits(TEXT[:-1])[np.arange(len(TEXT) - 1), TEXT[1:]]
    assert np.array_equal(np.concatenate([tile.targets for tile in tiles]), expected)
    assert tiles[0].ids.shape == (4, 3)


def test_an_error_is_one_line_and_the_worker_goes_on(shared: Session) -> None:
    loaded(shared)
    worker = shared.process_id
    with pytest.raises(EngineError, match=r"^Fake 1.0: RuntimeError: out of memory really$"):
        logits(shared, beginning(REFUSE))
    assert logits(shared).shape == (len(TEXT) - 1, fake_worker.VOCABULARY)
    with pytest.raises(EngineError, match="/models/missing: no such file"):
        shared.load(Path("/models/missing"), threads=1, context=8)
    assert shared.process_id == worker


def test_speed_is_tokens_per_second_of_each_repetition(shared: Session) -> None:
    loaded(shared)
    speed = shared.speed(prefill=100, decode=10, warm_up=1, repetitions=2)
    assert speed.prefill == [200.0, 200.0]
    assert speed.decode == [5.0, 5.0]
    assert speed.peak_bytes > 10**6


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (ABORT, r"was ended by SIGABRT: GGML_ASSERT\(n > 0\) failed$"),
        (KILL_AT_ROW, "was ended by SIGKILL"),
        (SHORT, "gave 9 of 10 positions; it was killed"),
        (FRAMELESS, "no frame begins with b'load'; it was killed"),
    ],
)
def test_a_worker_that_dies_is_one_line_and_the_next_text_has_another(
    shared: Session, token: int, message: str
) -> None:
    child, first = loaded(shared), shared.process_id
    with pytest.raises(WorkerDiedError, match=message):
        list(shared.score(beginning(token)))
    assert np.array_equal(logits(shared), fake_worker.logits(TEXT[:-1]))
    assert shared.process_id != first
    assert is_gone(child)


def test_numbers_that_are_none_are_refused(shared: Session) -> None:
    loaded(shared)
    with pytest.raises(EngineError, match=r"\(NaN\) from position 8 on"):
        list(shared.score(beginning(NAN)))
    assert logits(shared).shape[0] == len(TEXT) - 1


def test_a_reader_that_stops_early_does_not_mix_texts(shared: Session) -> None:
    loaded(shared)
    next(iter(shared.score(TEXT)))
    assert np.array_equal(logits(shared, TEXT[::-1]), fake_worker.logits(TEXT[::-1][:-1]))


def test_a_worker_that_does_not_answer_is_given_up() -> None:
    with opened(patience=1.0) as session:
        loaded(session)
        with pytest.raises(WorkerDiedError, match="gave no answer within 1 s; it was killed"):
            list(session.score(beginning(HANG)))


def test_a_model_that_no_worker_survives_is_given_up() -> None:
    with opened() as session:
        loaded(session)
        for _ in range(RESTARTS + 1):
            with pytest.raises(WorkerDiedError, match="SIGABRT"):
                list(session.score(beginning(ABORT)))
        with pytest.raises(EngineError, match=f"{RESTARTS + 1} workers died one after another"):
            list(session.score(TEXT))
        with pytest.raises(WorkerDiedError, match="SIGABRT"):
            session.load(Path("/models/aborts"), threads=1, context=8)
        loaded(session)
        assert logits(session).shape[0] == len(TEXT) - 1


def test_a_worker_that_was_killed_between_texts_is_replaced() -> None:
    with opened() as session:
        child = loaded(session)
        worker = session.process_id
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        assert is_gone(child)
        assert np.array_equal(logits(session), fake_worker.logits(TEXT[:-1]))


def test_closing_leaves_no_process_and_what_was_printed_is_in_the_log(tmp_path: Path) -> None:
    with opened(log=tmp_path / "engine.log") as session:
        child, worker = loaded(session), session.process_id
        logits(session)
    assert worker is not None
    assert is_gone(child)
    assert is_gone(worker)
    said = (tmp_path / "engine.log").read_text()
    assert "an engine prints when it is imported" in said
    assert "and so does what it starts" in said
    assert "it prints while it computes" in said
    with pytest.raises(EngineError, match="the session is closed"):
        session.load(Path("/models/logits"), threads=1, context=8)


CLIENT = """
import sys
from pathlib import Path
import numpy as np
from hemorrhage.engines.client import Session
from hemorrhage.engines.registry import Engine
engine = Engine(name="fake", title="Fake", version="1.0", reads="hf")
session = Session(engine, python=Path(sys.executable), worker=Path(sys.argv[1]))
model = session.load(Path("/models/logits"), threads=1, context=64)
print(model.facts["child"], session.process_id, flush=True)
list(session.score(np.array([int(sys.argv[2]), 1], np.int32)))
"""


def test_a_client_that_is_killed_leaves_no_process() -> None:
    command = [sys.executable, "-c", CLIENT, fake_worker.__file__, str(HANG)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        processes = [int(each) for each in client.stdout.readline().split()]
        assert len(processes) == 2
        client.kill()
        client.wait()
    assert all(is_gone(process) for process in processes)


def test_an_engine_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "missing")
    with pytest.raises(EngineError, match=r"^Fake 1.0: ImportError: libfake.so is not there and this"):
        opened()


def test_another_release_than_the_rows_would_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "2.0")
    with pytest.raises(EngineError, match=r"Fake 2.0 is installed, rows would say 1.0: hemorrhage engine remove fake"):
        opened()


def test_an_engine_that_is_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEMORRHAGE_ENGINES", str(tmp_path))
    engine = Engine(name="llama_cpp", title="llama.cpp", version="b1", reads="gguf")
    with pytest.raises(NotInstalledError, match=r"^llama.cpp is not installed in \S+: hemorrhage engine install l"):
        Session(engine)
