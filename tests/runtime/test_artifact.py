"""An output is there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hemorrhage.runtime.artifact import (
    MANIFEST,
    environment,
    failure,
    failure_recorded,
    read_manifest,
    write_manifest,
    writing,
)


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "variant" / "address"
    with pytest.raises(FileNotFoundError), writing(out) as part:
        (part / "absent" / "weights").write_text("half")
    assert list(out.parent.iterdir()) == []


def test_a_killed_writer_leaves_no_output_and_its_part_is_removed_later(tmp_path: Path) -> None:
    out = tmp_path / "address"
    code = f"""
import time
from pathlib import Path
from hemorrhage.runtime.artifact import writing
with writing(Path({str(out)!r})) as part:
    (part / "weights").write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert not out.exists()
    assert len(list(tmp_path.glob("*.part-*"))) == 1
    with writing(out) as part:
        write_manifest(part, variant="v")
    assert [path.name for path in tmp_path.iterdir()] == ["address"]
    assert read_manifest(out)["variant"] == "v"


def test_a_living_writers_part_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "address"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as other:
        alien = tmp_path / f"address.part-{os.uname().nodename}-{other.pid}"
        alien.mkdir()
        time.sleep(0.1)
        with writing(out) as part:
            write_manifest(part)
        assert alien.is_dir()
        other.kill()


def test_output_takes_the_place_of_the_empty_directory_snakemake_made(tmp_path: Path) -> None:
    (tmp_path / "address").mkdir()
    with writing(tmp_path / "address") as part:
        write_manifest(part)
    assert (tmp_path / "address" / MANIFEST).is_file()


def test_failures_are_recorded_in_one_line_and_interrupts_are_not(tmp_path: Path) -> None:
    with failure_recorded(tmp_path / "out", variant="v"):
        raise ValueError("not\nfinite")
    assert failure(tmp_path / "out") == "ValueError: not finite"
    assert read_manifest(tmp_path / "out")["variant"] == "v"
    with pytest.raises(KeyboardInterrupt), failure_recorded(tmp_path / "other", variant="v"):
        raise KeyboardInterrupt
    assert not (tmp_path / "other").exists()


def test_environment_names_what_can_move_a_number() -> None:
    assert {"id", "python", "torch", "machine", "threads"} <= set(environment())
