"""Environments of engines, made with a package of this test and without a network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from hemorrhage.engines import environment
from hemorrhage.engines.environment import InstallError, NotInstalledError
from hemorrhage.engines.registry import ENGINES, Engine


@dataclass(frozen=True)
class Local(Engine):
    """An engine whose list of packages is a file of the test."""

    file: Path = Path()

    @property
    def requirements(self) -> Path:
        return self.file


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Local:
    wheel = tmp_path / "wheels" / "tiny_engine-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    files = {
        "tiny_engine.py": "version = '1.0'\n",
        "tiny_engine-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-engine\nVersion: 1.0\n",
        "tiny_engine-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, "tiny_engine-1.0.dist-info/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, "tiny_engine-1.0.dist-info/RECORD": record}.items():
            archive.writestr(name, text)
    for name in ("UV", "PIP"):
        monkeypatch.setenv(f"{name}_FIND_LINKS", str(wheel.parent))
        monkeypatch.setenv(f"{name}_NO_INDEX", "1")
    monkeypatch.setenv("HEMORRHAGE_ENGINES", str(tmp_path / "engines"))
    listed = tmp_path / "tiny.txt"
    listed.write_text(f"tiny-engine==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return Local(name="tiny", title="Tiny", version="1.0", reads="hf", file=listed)


def imported(engine: Engine) -> str:
    program = "import tiny_engine; print(tiny_engine.version)"
    python = environment.python_of(engine)
    return subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_an_engine_is_installed_used_and_removed(engine: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "tiny", engine)
    with pytest.raises(NotInstalledError, match=r"^Tiny is not installed in \S+/engines: hemorrhage engine install t"):
        environment.require(["tiny"])
    environment.install(engine)
    environment.require(["tiny"])
    assert imported(engine) == "1.0"
    assert environment.python_of(engine).is_relative_to(environment.home())
    assert environment.remove(engine)
    assert not environment.is_installed(engine)
    assert not environment.remove(engine)


def test_what_a_killed_installation_left_is_finished(engine: Local) -> None:
    environment.install(engine)
    environment.marker(engine).unlink()
    (module,) = environment.folder_of(engine).rglob("tiny_engine.py")
    module.unlink()
    with pytest.raises(NotInstalledError, match="is not installed"):
        environment.python_of(engine)
    environment.install(engine)
    assert imported(engine) == "1.0"


def test_a_new_list_of_packages_asks_for_an_installation(engine: Local) -> None:
    environment.install(engine)
    engine.file.write_text(f"# another\n{engine.file.read_text()}")
    with pytest.raises(NotInstalledError, match=r"^Tiny is not 1.0 in "):
        environment.python_of(engine)
    environment.install(engine)
    assert len(list(environment.folder_of(engine).glob("ready-*"))) == 1


def test_a_package_of_another_hash_is_refused(engine: Local) -> None:
    engine.file.write_text(f"tiny-engine==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(InstallError, match=r"^Tiny 1.0 could not be installed"):
        environment.install(engine)
    assert not environment.is_installed(engine)


def test_a_folder_that_cannot_be_made_is_one_line(
    engine: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEMORRHAGE_ENGINES", str(tmp_path / "file"))
    with pytest.raises(InstallError, match=r"/file: File exists$"):
        environment.install(engine)


def test_two_installations_at_once_are_refused(engine: Local) -> None:
    holder = f"import time; from pathlib import Path; from hemorrhage.runtime import lock; lock.hold(Path({str(environment.home() / 'tiny.lock')!r})); print(1, flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InstallError, match="another process installs or removes Tiny"):
            environment.install(engine)
        other.kill()


def test_a_temporary_experiment_has_the_engines_of_its_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEMORRHAGE_ENGINES", raising=False)
    experiment = tmp_path / ".dvc/tmp/exps/standalone"
    experiment.mkdir(parents=True)
    for folder in (tmp_path, experiment):
        monkeypatch.chdir(folder)
        assert environment.home() == tmp_path / ".engines"


def test_what_is_built_in_needs_no_installation() -> None:
    environment.require(["transformers"])
    assert environment.python_of(ENGINES["transformers"]) == Path(sys.executable)
