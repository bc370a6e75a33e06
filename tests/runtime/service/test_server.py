"""The server: jobs run as they would alone, and it refuses what it could run otherwise only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hemorrhage
from hemorrhage.runtime import lacking
from hemorrhage.runtime.service import server
from tests.runtime.service.running import SOURCE, command, environment, gone, nap, pids, start_light, talk, until


def test_a_served_job_is_like_a_direct_one(light: subprocess.Popen[bytes]) -> None:
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


def test_what_was_read_at_an_import_must_not_differ(light: subprocess.Popen[bytes]) -> None:
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


def test_a_job_runs_the_code_of_its_own_time_and_a_changed_service_is_not_used(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "copy"
    package = source / "hemorrhage"
    (package / "runtime" / "service").mkdir(parents=True)
    for file in (Path(hemorrhage.__file__), Path(lacking.__file__), *Path(server.__file__).parent.glob("*.py")):
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
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


def test_jobs_run_at_the_same_time_and_outlive_the_server(light: subprocess.Popen[bytes]) -> None:
    processes = [nap() for _ in range(4)]
    assert len({job for job, _ in pids()}) == 4
    light.kill()
    light.wait()
    assert not any(process.poll() for process in processes)
    assert talk()[1]["served"] is False, "new ones run directly"
    Path("nap.wait").unlink()
    assert [process.wait() for process in processes] == [0] * 4


def test_the_server_ends_with_what_started_it(folder: Path) -> None:
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
