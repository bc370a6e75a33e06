"""A SLURM cluster of one node, this machine: munged, slurmctld and slurmd on the loopback interface.

Needs root and Debian's slurm-wlm and munge. It has to write /etc/slurm/slurm.conf, since a job's step keeps no variable
that could name another file; one that is there already is somebody's cluster, and stops it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CONFIGURATION = Path("/etc/slurm")

SETTINGS = """\
ClusterName=hemorrhage
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={state}/slurmctld
SlurmdSpoolDir={state}/slurmd
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

GPUS = "NodeName={host} Name=gpu File=/dev/null Count=1\nNodeName={host} Name=gpu File=/dev/zero Count=1\n"
"""Devices that stand in for two GPUs: SLURM counts them and names them to jobs."""


def missing() -> str:
    """What keeps a cluster from starting here, or nothing."""
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not installed (make test-slurm installs them)"
    if os.geteuid():
        return "only root can start slurmd"
    if (CONFIGURATION / "slurm.conf").exists():
        return f"{CONFIGURATION}/slurm.conf is there: this machine belongs to a cluster"
    return ""


@contextlib.contextmanager
def cluster(state: Path) -> Iterator[None]:
    """Runs while the block does; everything is stopped and removed after it."""
    host = socket.gethostname()
    for name in ("slurmctld", "slurmd"):
        (state / name).mkdir(parents=True)
    CONFIGURATION.mkdir(exist_ok=True)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 * 3 // 4
    facts = {"host": host, "state": state, "cpus": os.cpu_count(), "memory": memory}
    files = {"slurm.conf": SETTINGS.format(**facts), "gres.conf": GPUS.format(**facts)}
    for name, content in files.items():
        (CONFIGURATION / name).write_text(content)
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    processes = []
    try:
        munged = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"]
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (state / f"{Path(command[-2]).name}.log").open("w") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, "the node did not come up: " + str(state)
            assert all(process.poll() is None for process in processes), f"a daemon ended: {state}"
            time.sleep(0.5)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for name in files:
            (CONFIGURATION / name).unlink()
