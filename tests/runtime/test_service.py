"""The service: what a job gives, and what becomes of it when client, watcher or server die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hemorrhage
from hemorrhage.runtime.service import client, device, server

SOURCE = Path(hemorrhage.__file__).parent.parent

LIGHT = "from hemorrhage.runtime.service import server; server.LIBRARIES = ('json',); server.main()"
"""A server that is there at once: what it does with a job does not depend on what it has imported."""

TALK = """
import json, os, sys
from pathlib import Path
print("out", sys.argv[1:], flush=True)
print("err", file=sys.stderr)
parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
Path("facts.json").write_text(json.dumps({
    "served": "import server" in parent, "threads": os.environ["OMP_NUM_THREADS"], "name": __name__,
    "device": os.environ.get("CUDA_VISIBLE_DEVICES"), "group": os.getpgrp() == os.getpid(),
}))
sys.exit(int(sys.argv[1]))
"""

NAP = """
import os, sys, time
from pathlib import Path
from multiprocessing import Process
def nap(): time.sleep(60)
if len(sys.argv) > 2: Process(target=nap, daemon=True).start()
with Path(sys.argv[1]).open("a") as stream: stream.write(f"{os.getpid()} {os.getppid()}\\n")
while Path(sys.argv[1]).with_suffix(".wait").exists(): time.sleep(0.01)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in (*server.THREADS, "PYTEST_CURRENT_TEST")}
    return {**kept, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **more}


def start_light(env: dict[str, str]) -> subprocess.Popen:
    with server.listen(Path(client.SOCKET)) as listener, Path("service.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", LIGHT, str(listener.fileno())],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stderr=log, env=env,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """In the background of a shell processes are started with SIGINT ignored, and pass that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, with two modules in it."""
    monkeypatch.chdir(tmp_path)
    Path("talk.py").write_text(TALK)
    Path("nap.py").write_text(NAP)
    Path("nap.wait").touch()
    return tmp_path


@pytest.fixture
def light(folder: Path) -> Iterator[subprocess.Popen]:
    process = start_light(environment())
    yield process
    Path("nap.wait").unlink(missing_ok=True)
    process.stdin.close()
    process.wait(10)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-IS", client.__file__, *arguments]


def talk(status: int = 0, env: dict[str, str] | None = None) -> tuple[subprocess.CompletedProcess, dict]:
    Path("facts.json").unlink(missing_ok=True)
    done = subprocess.run(
        command("usage.tsv", "talk", str(status), "a b"), env=env or environment(), capture_output=True, text=True
    )
    return done, json.loads(Path("facts.json").read_text())


def nap(*more: str) -> subprocess.Popen:
    """A client whose job has begun."""
    before = pids()
    process = subprocess.Popen(command("usage.tsv", "nap", "nap", *more), env=environment(), stderr=subprocess.PIPE)
    until(lambda: len(pids()) > len(before))
    return process


def pids() -> list[tuple[int, int]]:
    """Of each job that began to nap: its process, and its parent."""
    lines = Path("nap").read_text().splitlines() if Path("nap").exists() else []
    return [tuple(map(int, line.split())) for line in lines if line.count(" ") == 1]


def until(true) -> None:
    for _ in range(1500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_served_job_is_like_a_direct_one(light) -> None:
    for status in (0, 3):
        served, facts = talk(status, environment(CUDA_VISIBLE_DEVICES="1"))
        assert (served.returncode, served.stdout, served.stderr) == (status, f"out ['{status}', 'a b']\n", "err\n")
        assert facts == {
            "served": True, "threads": "1", "name": "__main__", "device": "1", "group": True,
        }  # fmt: skip
    header, row = Path("usage.tsv").read_text().splitlines()
    assert header.split("\t") == ["s", "max_rss", "cpu_time", "start_up"]
    assert 0 < float(row.split("\t")[0]) < 60
    crashed = subprocess.run(command("usage.tsv", "absent"), env=environment(), capture_output=True, text=True)
    assert crashed.returncode == 1
    assert "No module named absent" in crashed.stderr


def test_without_a_server_the_client_runs_the_step(folder) -> None:
    done, facts = talk(3)
    assert done.returncode == 3
    assert not facts["served"]
    assert Path("usage.tsv").read_text().startswith("s\t")
    # The socket of a run that was killed.
    server.listen(Path(client.SOCKET)).close()
    assert talk()[1]["served"] is False


def test_what_was_read_at_an_import_must_not_differ(light) -> None:
    assert talk()[1]["served"]
    assert not talk(env=environment(HF_HUB_OFFLINE="0"))[1]["served"]
    assert "other values of HF_HUB_OFFLINE" in Path("service.log").read_text()
    assert not talk(env=environment(MKL_NUM_THREADS="2"))[1]["served"]
    elsewhere = Path("elsewhere")
    elsewhere.mkdir()
    (elsewhere / ".snakemake").symlink_to(Path(".snakemake").resolve())
    script = Path("talk.py").read_text()
    (elsewhere / "talk.py").write_text(script)
    subprocess.run(command("usage.tsv", "talk", "0"), env=environment(), cwd=elsewhere, capture_output=True)
    assert json.loads((elsewhere / "facts.json").read_text())["served"] is False


def test_a_job_runs_the_code_of_its_own_time_and_a_changed_service_is_not_used(folder, tmp_path) -> None:
    source = tmp_path / "copy"
    package = source / "hemorrhage"
    (package / "runtime" / "service").mkdir(parents=True)
    for file in (Path(hemorrhage.__file__), *Path(server.__file__).parent.glob("*.py")):
        (package / file.relative_to(SOURCE / "hemorrhage")).write_text(file.read_text())
    (package / "say.py").write_text("print('old')")
    env = environment(PYTHONPATH=str(source))
    process = start_light(env)

    def say() -> str:
        words = command("usage.tsv", "hemorrhage.say")
        return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert say() == "old"
    (package / "say.py").write_text("print('newer')")
    assert say() == "newer"
    assert "refused" not in Path("service.log").read_text()
    (package / "runtime" / "service" / "job.py").touch()
    assert say() == "newer"
    assert "refused hemorrhage.say: the service or an installed distribution has changed" in (
        Path("service.log").read_text()
    )
    process.stdin.close()
    assert process.wait(10) == 0


def test_a_killed_client_takes_its_job_along(light) -> None:
    process = nap("with a child")
    job = pids()[-1][0]
    children = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    assert children, "the job has a child of its own"
    process.kill()
    process.wait()
    until(lambda: gone(job) and all(gone(int(child)) for child in children))
    assert talk()[1]["served"], "the server goes on"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_job_and_its_end_is_the_clients(light, number) -> None:
    process = nap()
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == -number
    assert (b"KeyboardInterrupt" in stderr) == (number == signal.SIGINT)
    assert gone(pids()[-1][0])


def test_a_job_killed_for_memory_is_no_success(light) -> None:
    process = nap()
    os.kill(pids()[-1][0], signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_jobs_run_at_the_same_time_and_outlive_the_server(light) -> None:
    processes = [nap() for _ in range(4)]
    assert len({job for job, _ in pids()}) == 4
    light.kill()
    light.wait()
    assert not any(process.poll() for process in processes)
    assert talk()[1]["served"] is False, "new ones run directly"
    Path("nap.wait").unlink()
    assert [process.wait() for process in processes] == [0] * 4


def test_a_job_whose_watcher_dies_is_begun_again_alone(light) -> None:
    process = nap()
    job, watcher = pids()[-1]
    os.kill(watcher, signal.SIGKILL)
    until(lambda: len(pids()) == 2)
    assert gone(job), "never two at a time"
    Path("nap.wait").unlink()
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert b"begins again" in stderr


def test_the_server_ends_with_what_started_it(folder) -> None:
    start = (
        "import sys, time; from pathlib import Path; from hemorrhage.runtime.service import server;"
        "held = server.start(Path(sys.argv[1]), Path('service.log')); print(held.pid, flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", start, str(SOURCE)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as starter:
        assert starter.stdout is not None
        process = int(starter.stdout.readline())
        starter.kill()
    until(lambda: gone(process))
    assert talk()[1]["served"] is False


CHAIN = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, words
"""


def steps(root: Path, tiny: Path) -> list[list[str]]:
    """A small pipeline in ``root``, whose texts are there: the words of each step."""
    base, task, out = root / "base" / "x", root / "tasks" / "x", root / "evaluations" / "x"
    altered, reference = root / "checkpoints" / "x", root / "references" / "x"
    rtn = {"sweep": "rtn", "method": "rtn", "seed": 0, "settings": {"bits": 3, "group_size": 4}}
    windows = {"dtype": "float32", "window": 32, "windows": 4, "inside": {"windows": 3, "window": 24}}
    return [
        ["hemorrhage.models", str(base), "--spec", json.dumps({"source": "path", "path": str(tiny)})],
        ["hemorrhage.data.tasks.probes", str(task), "--task", "agreement", "--items", "8", "--seed", "0"],
        ["hemorrhage.compress", str(altered), "--variant", "rtn-3", "--base", str(base), "--spec", json.dumps(rtn)],
        ["hemorrhage.evaluate.reference", str(reference), "--base", str(base), "--texts", str(root / "texts" / "x"),
         "--tasks", str(task), "--spec", json.dumps(windows)],
        ["hemorrhage.evaluate", str(out), "--variant", "rtn-3", "--checkpoint", str(altered), "--base", str(base),
         "--reference", str(reference), "--tasks", str(task), "--spec", json.dumps({"ablate": False})],
    ]  # fmt: skip


def test_results_are_the_same_bytes(folder, tiny, monkeypatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    for root in (Path("served"), Path("direct")):
        text = root / "texts" / "x"
        text.mkdir(parents=True)
        tokens = torch.randint(3, 500, (2000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
        save_file({"evaluation": tokens}, text / "tokens.safetensors")
        facts = {"corpus": "prose", "sha256": "0", "join": "\n\n"}
        (text / "manifest.json").write_text(json.dumps(facts))
    Path("chain.py").write_text(CHAIN)
    words = command("--direct", "direct.tsv", "chain", json.dumps(steps(Path("direct"), tiny)))
    with (
        server.start(SOURCE, Path("service.log")) as process,
        subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE) as direct,
    ):
        for arguments in steps(Path("served"), tiny):
            done = subprocess.run(command("usage.tsv", *arguments), env=environment(), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        process.stdin.close()
        _, stderr = direct.communicate()
        assert direct.returncode == 0, stderr
    assert "refused" not in Path("service.log").read_text()
    files = sorted(file.relative_to("served") for file in Path("served").rglob("*") if file.is_file())
    assert files == sorted(file.relative_to("direct") for file in Path("direct").rglob("*") if file.is_file())
    assert Path("evaluations/x/tokens.parquet") in files
    for file in files:
        if file.name != "cost.json":
            served, alone = (root / file for root in (Path("served"), Path("direct")))
            served_bytes = _without_times(served.read_bytes().replace(b"served/", b"direct/"))
            assert served_bytes == _without_times(alone.read_bytes()), file


def _without_times(content: bytes) -> bytes:
    """A manifest without the checksum of the file of measured times."""
    return re.sub(rb'"cost.json": "[0-9a-f]+"', b"", content)


def test_a_step_runs_on_the_processor_unless_it_was_granted_a_gpu(light) -> None:
    for option, where in (([], "cpu"), (["--gpu=0"], "cpu"), (["--direct"], "cpu"), (["--gpu=1"], None)):
        code = "import json, os; json.dump(os.environ.get('HEMORRHAGE_DEVICE'), open('device.json', 'w'))"
        Path("where.py").write_text(code)
        subprocess.run(command(*option, "usage.tsv", "where"), env=environment(), check=True, capture_output=True)
        assert json.loads(Path("device.json").read_text()) == where


HOLD = """
import os, sys, time
from pathlib import Path
from hemorrhage.runtime.service import device
device.assign()
Path(sys.argv[1]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
while not Path("over").exists():
    time.sleep(0.01)
"""


def test_each_job_holds_a_gpu_of_its_own_and_the_third_waits_for_one(folder) -> None:
    env = environment(CUDA_VISIBLE_DEVICES="4,7", TMPDIR=str(folder))
    env.pop("HEMORRHAGE_DEVICE", None)

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", HOLD, name], env=env)

    first = start("first")
    until(lambda: Path("first").exists() and Path("first").read_text())
    second = start("second")
    until(lambda: Path("second").exists() and Path("second").read_text())
    assert (Path("first").read_text(), Path("second").read_text()) == ("4", "7")
    third = start("third")
    time.sleep(0.3)
    assert not Path("third").exists()
    first.kill()
    first.wait()
    until(lambda: Path("third").exists() and Path("third").read_text())
    assert Path("third").read_text() == "4", "a killed job's lock ends with it"
    Path("over").touch()
    assert second.wait(10) == third.wait(10) == 0


def test_a_single_device_that_slurm_gave_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEMORRHAGE_DEVICE", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    device.assign()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert not device._held


COUNT = """
import json, os, sys
from pathlib import Path
import numpy as np, torch
torch.randn(600, 600) @ torch.randn(600, 600)
np.random.randn(600, 600) @ np.random.randn(600, 600)
tasks = len(os.listdir("/proc/self/task"))
Path("count.json").write_text(json.dumps({"torch": torch.get_num_threads(), "inside": tasks}))
"""


@pytest.mark.parametrize("served", [False, True])
def test_a_job_of_one_thread_computes_with_one(folder, served: bool) -> None:
    Path("count.py").write_text(COUNT)
    process = None
    if served:
        with server.listen(Path(client.SOCKET)) as listener, Path("service.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", LIGHT.replace("'json',", "'json', 'torch'"), str(listener.fileno())],
                pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stderr=log, env=environment(),
            )  # fmt: skip
    threads = {}
    for granted in (1, 2):
        env = environment(**dict.fromkeys(server.THREADS, str(granted)))
        subprocess.run(command("usage.tsv", "count"), env=env, check=True)
        threads[granted] = json.loads(Path("count.json").read_text())
    if process:
        process.stdin.close()
        process.wait(10)
        assert "refused" not in Path("service.log").read_text()
    assert threads[1] == {"torch": 1, "inside": 1}, "no pool of threads stands beside the job's own"
    assert threads[2]["torch"] == 2
    assert threads[2]["inside"] > 1
