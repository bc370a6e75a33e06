"""The servers of real engines, on the loopback interface: their log-probabilities are the model's; a kill resumes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hemorrhage.engines.endpoint import EndpointSession
from hemorrhage.engines.endpoint_dialects import Answer, Vocabulary
from hemorrhage.engines.endpoint_http import EndpointError
from hemorrhage.engines.endpoint_spec import EndpointSpec
from hemorrhage.engines.environment import NotInstalledError, python_of
from hemorrhage.engines.registry import ENGINES
from hemorrhage.models.checkpoint import load
from hemorrhage.models.export import write
from tests.engines.lying_server import Floats
from tests.engines.test_endpoint import free_port

pytestmark = pytest.mark.engines

PATIENCE = 180
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

SERVER = Path(__file__).parent / "llama_server.py"


@pytest.fixture(scope="module")
def windows(tiny: Path) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    made: list[list[int]] = torch.randint(3, 500, (3, 24), generator=generator).tolist()
    return made


@pytest.fixture(scope="module")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama with heads of 32, which vLLM's kernels on a processor take, and the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(tiny, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def exact(folder: Path, windows: list[list[int]]) -> list[Floats]:
    """A model's log-probabilities of each window, in float32."""
    with torch.inference_mode():
        rows = torch.log_softmax(load(folder)(torch.tensor(windows)).logits[:, :-1].double(), -1)
    return list(rows.numpy())


@contextmanager
def running(command: list[str], port: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at a port, with all its processes ended afterwards."""
    with Path(os.devnull).open("wb") as silent:
        process = subprocess.Popen(
            command, stdout=silent, stderr=silent, start_new_session=True, env={**os.environ, **variables}
        )
        try:
            for _ in range(PATIENCE):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, "the server ended"
                time.sleep(1)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def command(engine: str, tiny: Path, folder: Path, port: int) -> list[str]:
    """The command that starts an engine's server. Skips where the engine is not installed."""
    if engine not in ENGINES:
        pytest.skip(f"{engine} is not installed")
    try:
        python = str(python_of(ENGINES[engine]))
    except NotInstalledError:
        pytest.skip(f"{engine} is not installed")
    if engine == "llama_cpp":
        file = folder / "tiny.gguf"
        if not file.exists():
            write(tiny, file, "gguf-dense", tiny)
        return [python, "-I", str(SERVER), str(file), str(port), "tiny"]
    settings = {"model": str(tiny), "host": "127.0.0.1", "port": port, "served-model-name": "tiny", "dtype": "float32"}
    listed = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    serve = [python, "-I", "-m", "vllm.entrypoints.openai.api_server"]
    return [*serve, *listed, "--max-model-len", "256", "--enforce-eager"]


def asked(port: int, tiny: Path, kept: Path | None = None, dialect: str = "auto", top: int = 20) -> EndpointSession:
    vocabulary = Vocabulary.of(Tokenizer.from_file(str(tiny / "tokenizer.json")))
    settings = {"openai": f"http://127.0.0.1:{port}", "model": "tiny", "dialect": dialect, "concurrency": 2, "top": top}
    return EndpointSession(EndpointSpec.model_validate({**settings, "attempts": 3}), vocabulary, kept)


@pytest.mark.parametrize(("engine", "dialects"), [("llama_cpp", ["llama_cpp"]), ("vllm", ["prompt_logprobs", "echo"])])
def test_a_real_server_gives_the_models_log_probabilities(
    engine: str, dialects: list[str], tiny: Path, wide: Path, windows: list[list[int]], tmp_path: Path
) -> None:
    port, model = free_port(), wide if engine == "vllm" else tiny
    with running(command(engine, model, tmp_path, port), port, **VARIABLES):
        for dialect in dialects:
            with asked(port, model, dialect=dialect) as session:
                session.load(windows[0])
                answers = list(session.ask_windows(windows))
            for answer, rows, window in zip(answers, exact(model, windows), windows, strict=True):
                # Texts of this vocabulary name few tokens: most are the text of several.
                check(answer, rows, window, engine == "vllm", fewest=1 if dialect == "echo" else 15)


def check(answer: Answer, rows: Floats, window: list[int], is_complete: bool, fewest: int) -> None:
    """Compare what a server said with the model's own log-probabilities."""
    own, is_given = rows[np.arange(len(rows)), window[1:]], ~np.isnan(answer.target)
    assert is_given.all() or not is_complete
    assert answer.target[is_given] == pytest.approx(own[is_given], abs=0.02)
    at_ids = np.take_along_axis(rows, np.maximum(answer.ids, 0), 1)
    assert answer.logprobs[answer.ids >= 0] == pytest.approx(at_ids[answer.ids >= 0], abs=0.02)
    assert (answer.ids >= 0).sum(1).min() >= fewest
    assert np.mean([interval.low for interval in answer.kl(rows, window)]) < 1e-4


def test_the_first_dialect_that_works_is_taken_of_llama_server(
    tiny: Path, windows: list[list[int]], tmp_path: Path
) -> None:
    port = free_port()
    with running(command("llama_cpp", tiny, tmp_path, port), port), asked(port, tiny) as session:
        session.load(windows[0])
        assert session.tag == "endpoint-llama_cpp"


def test_a_killed_llama_server_resumes_at_the_next_window(tiny: Path, windows: list[list[int]], tmp_path: Path) -> None:
    port, kept = free_port(), tmp_path / "kept"
    start = command("llama_cpp", tiny, tmp_path, port)
    with running(start, port) as server, asked(port, tiny, kept) as session:
        session.load(windows[0], samples=False)
        answers = session.ask_windows([windows[0]])
        next(answers)
        server.send_signal(signal.SIGKILL)
        server.wait()
        with pytest.raises(EndpointError, match="run again to resume"):
            list(session.ask_windows(windows))
    assert len(list(kept.iterdir())) == 1
    with running(start, port), asked(port, tiny, kept) as session:
        session.load(windows[0], samples=False)
        assert len(list(session.ask_windows(windows))) == 3
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
