"""How a supervisor keeps a warm standby on every node, and lets ranks start in it (standby.py, handover.py)."""

import logging
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from megajukebox.common.child_processes import module_command
from megajukebox.resilience import handover

log = logging.getLogger(__name__)

LEAVING_SECONDS = 5.0  # that a standby may take to end
# On every node of the job, beside the training. It takes no resources of its own and may use all of the job's.
SRUN = (
    *("srun", "--quiet", "--overlap", "--ntasks-per-node=1", "--cpu-bind=none", "--mem=0"),
    *("--kill-on-bad-exit=0", "--no-kill"),
)
# cluster.sh sets it for ranks; it would confine the standby, and all ranks in it, to the cores of one.
SRUN_CPUS = "SRUN_CPUS_PER_TASK"


class StandbyLauncher:
    """The standbys of one supervisor. Nothing depends on them: where one is missing, ranks start cold."""

    def __init__(self, nodes: list[str]) -> None:
        """`nodes` of the SLURM job; empty outside SLURM."""
        self.nodes = nodes
        name = f"megajukebox-standby-{os.getuid()}-{secrets.token_hex(4)}"
        self.address = str(Path(tempfile.gettempdir()) / name)
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start them, or start them again if they have ended."""
        if self.process is not None:
            if self.process.poll() is None:
                return
            log.warning(
                "the standby ended with status %s; it is started again", self.process.returncode
            )
        command = module_command("megajukebox.resilience.standby", self.address)
        environment = {name: value for name, value in os.environ.items() if name != SRUN_CPUS}
        if self.nodes:
            command = [*SRUN, f"--nodes={len(self.nodes)}", f"--ntasks={len(self.nodes)}", *command]
        try:
            # It holds the other end of stdin, and leaves when this process is gone.
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            log.warning("no standby: %s", error)

    def stop(self) -> None:
        """End them. The ranks have ended."""
        if self.process is None:
            return
        assert self.process.stdin
        self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def with_standby(command: list[str]) -> list[str] | None:
    """`command` with its entry started by handover.py; None if it starts none of ours.

    deepspeed --num_gpus 8 megajukebox/train.py vqvae ...  ->  deepspeed --num_gpus 8 .../handover.py train vqvae ...
    srun megajukebox train vqvae ...                       ->  srun python .../handover.py train vqvae ...
    """
    script = str(Path(handover.__file__))
    for index, word in enumerate(command):
        rest = command[index + 1 :]
        path = Path(word)
        if path.suffix == ".py" and is_ours(path):
            return [*command[:index], script, path.stem, *rest]
        starts_entry = bool(rest) and rest[0] in handover.ENTRIES
        if path.name == "megajukebox" and starts_entry:
            return [*command[:index], sys.executable, script, *rest]
        if word == "megajukebox.cli" and command[index - 1] == "-m" and starts_entry:
            return [*command[: index - 1], script, *rest]
    return None


def is_ours(path: Path) -> bool:
    """Whether it is an entry of this package, and not another program of the same name."""
    package = Path(handover.__file__).parents[1]
    return path.stem in handover.ENTRIES and path.resolve().parent == package
