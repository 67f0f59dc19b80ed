"""A SLURM cluster of four nodes with eight GPUs each on this machine: munged, slurmctld, four slurmd, in one folder.

Nodes and GPUs are only claimed, so that the scripts' own #SBATCH lines can be submitted; big01 to big66 are never up,
so that jobs of full size can be checked. It has ports of its own, and its daemons are ended by their process ids.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
SBIN = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
CONFIG = """ClusterName=megajukebox
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
MpiDefault=none
SlurmdTimeout=10
SlurmctldTimeout=30
InactiveLimit=0
KillWait=20
MinJobAge=600
FirstJobId={number}
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=64 RealMemory=4000 Gres=gpu:8
NodeName=big[01-66] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{big}-{bigger}] CPUs=64 Gres=gpu:8 State=DOWN
PartitionName=main Nodes=n[1-4] Default=YES MaxTime=INFINITE State=UP
PartitionName=big Nodes=big[01-66] MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]


class Cluster:
    """`start` it, `sbatch` to it, and `stop` it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, {}
        self.environment = {**os.environ, "PATH": SBIN, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in [
            name for name in self.environment if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"
        ]:
            del self.environment[name]

    def start(self) -> None:
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        ports = free_ports(71)
        facts = {"first": ports[1], "last": ports[4], "big": ports[5], "bigger": ports[70], "port": ports[0]}
        facts["number"] = 1 + os.getpid() % 50000  # ports of runs follow from it: two clusters may be here at once
        config = CONFIG.format(folder=self.folder, host=socket.gethostname(), user=getpass.getuser(), **facts)
        (self.folder / "slurm.conf").write_text(config)
        for number in range(8):  # slurmd only looks whether a GPU's file is there
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-7]\n")
        self._start_munge()
        self.daemons["slurmctld"] = self._daemon("slurmctld", "-D", "-i")
        for node in ("n1", "n2", "n3", "n4"):
            self.start_node(node)
        self.wait_for(lambda: self.idle() == 4, 180)

    def idle(self) -> int:
        """Nodes of the small partition that wait for work."""
        count = self.ask("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D")
        return int(count) if count.isdigit() else 0

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        paths = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{name}={munge / path}" for name, path in paths.items()]
        self.daemons["munged"] = self._daemon("munged", "--foreground", "--force", *files)
        self.wait_for((munge / "socket").exists, 100)

    def _daemon(self, name: str, *arguments: str) -> subprocess.Popen:
        program = shutil.which(name, path=SBIN)
        assert program
        with (self.folder / f"{name}.out").open("ab") as out:
            return subprocess.Popen([program, *arguments], env=self.environment, stdout=out, stderr=out)

    def start_node(self, node: str) -> None:
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self.daemons[node] = self._daemon("slurmd", "-D", "-N", node)

    def stop_node(self, node: str) -> None:
        """As if its power had gone, but for the ranks that it had started: nobody can reach them any more."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        self.ask("scancel", "--me")
        self.wait_for(lambda: not self.ask("squeue", "-h"), 40, must=False)
        for daemon in reversed(list(self.daemons.values())):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    # ---- What a test asks -------------------------------------------------------------------------------------------

    def ask(self, *command: str, **more: str) -> str:
        """What a command prints; a failure is the test's."""
        done = subprocess.run(command, env=self.environment | more, capture_output=True, text=True, timeout=120)
        return done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr.strip()}"

    def sbatch(self, script: str, *options: str, cwd: Path, **variables: str) -> str:
        """The number of a new job; `variables` are those that slurm/cluster.sh reads."""
        command = ["sbatch", "--parsable", *options, script]
        env = self.environment | variables
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.split(";")[0].strip()

    def states(self, job: str) -> list[str]:
        """States of a job's tasks that SLURM still knows of, finished ones too."""
        return self.ask("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").split()

    def ended(self, job: str) -> bool:
        return not self.ask("squeue", "-h", "-j", job, "-o", "%T")

    def wait_for(self, done, seconds: float, must: bool = True) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if done():
                return True
            time.sleep(0.2)
        assert not must, f"not so after {seconds} s; see {self.folder}"
        return False


def free_ports(count: int) -> list[int]:
    """That many ports in a row that nobody listens on now."""
    for first in range(10000 + os.getpid() % 20000, 32000, count):
        taken = []
        for port in range(first, first + count):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    taken.append(port)
        if not taken:
            return list(range(first, first + count))
    raise OSError("no free ports")
