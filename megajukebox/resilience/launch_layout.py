"""Which processes a command would start, where each would run and what it would train: worked out, starting none."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from megajukebox.common.child_processes import SAFE_PATH
from megajukebox.common.errors import UserError
from megajukebox.common.world import free_port, host
from megajukebox.resilience import slurm
from megajukebox.resilience.preflight import ENTRIES

# Of each launcher but srun, its options for the number of nodes and of processes on a node.
NODE_OPTIONS = {"deepspeed": ("--num_nodes",), "torchrun": ("--nnodes",), "mpirun": ()}
PROCESS_OPTIONS = {
    "deepspeed": ("--num_gpus",),
    "torchrun": ("--nproc-per-node", "--nproc_per_node"),
    "mpirun": ("-n", "-np", "--np"),
}
# Of each launcher that lets ranks meet at port 29500 unless it is told another.
PORT_OPTIONS = {
    "deepspeed": ("--master_port",),
    "torchrun": ("--master-port", "--master_port", "--rdzv-endpoint", "--rdzv_endpoint"),
}
OUR_ENTRIES = (*ENTRIES, "doctor.py", "handover.py", "megajukebox")
# Options of train and distill that stand alone; all others have a value.
FLAGS = ("--allow-pipe", "--data-only", "--keep-going", "--chain", "--quiet")


class RankPlacement(NamedTuple):
    """The place of one process."""

    rank: int
    node: str
    local_rank: int
    gpu: int | None  # of its node; None: it computes on the CPU


class LaunchLayout(NamedTuple):
    """All processes of a launch. Ranks follow one another on a node, as SLURM and deepspeed place them."""

    launcher: str  # empty: the command itself is the one process
    nodes: tuple[str, ...]
    per_node: int

    @property
    def ranks(self) -> int:
        return len(self.nodes) * self.per_node

    def placements(self, gpus: int) -> Iterator[RankPlacement]:
        """Every process, on nodes of `gpus` GPUs."""
        for rank in range(self.ranks):
            node, local_rank = divmod(rank, self.per_node)
            yield RankPlacement(
                rank, self.nodes[node], local_rank, local_rank % gpus if gpus else None
            )


def job_nodes() -> list[str]:
    """The nodes of this SLURM job, or as many made-up names as a dry run is told of; [] outside both."""
    if slurm.job():
        return slurm.nodes()
    count = int(os.environ.get("SLURM_JOB_NUM_NODES", 0))
    digits = len(str(count))
    return [f"node{number:0{digits}d}" for number in range(1, count + 1)]


def launch_layout(command: list[str], nodes: list[str]) -> LaunchLayout:
    """What `command` starts on `nodes` of a SLURM job, or on this machine if its launcher is another.

    Raises:
        UserError: a number of processes is none, or there are not as many on each node.
    """
    launcher = Path(command[0]).name
    if launcher == "srun" and nodes:
        return srun_layout(command, nodes)
    if launcher not in PROCESS_OPTIONS:
        return LaunchLayout("", (host(),), 1)
    count = option_number(command, NODE_OPTIONS[launcher]) or 1
    here = (host(),) if count == 1 else tuple(f"node{number}" for number in range(1, count + 1))
    return LaunchLayout(launcher, here, option_number(command, PROCESS_OPTIONS[launcher]) or 1)


def srun_layout(command: list[str], nodes: list[str]) -> LaunchLayout:
    """Options of the srun itself, else those of its job."""
    chosen = nodes[: option_number(command, ("--nodes", "-N")) or len(nodes)]
    per_node = option_number(command, ("--ntasks-per-node",))
    tasks = option_number(command, ("--ntasks", "-n"))
    if per_node is None and tasks is None:
        per_node = int(os.environ.get("SLURM_NTASKS_PER_NODE") or 0) or None
        tasks = int(os.environ.get("SLURM_NTASKS") or len(chosen))
    if per_node is None:
        assert tasks is not None
        per_node, rest = divmod(tasks, len(chosen))
        if rest:
            raise UserError(
                f"{tasks} tasks are not as many on each of {len(chosen)} nodes;"
                f" ask for {max(1, per_node) * len(chosen)}, or set --ntasks-per-node"
            )
    return LaunchLayout("srun", tuple(chosen), per_node)


def option_number(command: list[str], names: tuple[str, ...]) -> int | None:
    """The value of one of an option's `names`, as `--name=8` or `--name 8`; None without it."""
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name not in names:
            continue
        text = value if equals else "".join(command[index + 1 : index + 2])
        if not text.isdecimal():
            raise UserError(f"{name} {text!r} is no number of processes; give one")
        return int(text)
    return None


def with_random_port(command: list[str]) -> list[str]:
    """A launcher's command with a port drawn at random, unless it names one or several machines must agree on it."""
    launcher = Path(command[0]).name
    names = PORT_OPTIONS.get(launcher, ())
    is_told = any(word.partition("=")[0] in (*names, "--standalone") for word in command)
    by_hand = launcher == "torchrun" and (option_number(command, NODE_OPTIONS[launcher]) or 1) > 1
    if not names or is_told or by_hand:
        return command
    return [command[0], names[0], str(free_port()), *command[1:]]


def safe_path(command: list[str]) -> dict[str, str]:
    """The variable under which Python, and launchers in Python, import nothing from the folder that they stand in.

    Only for a command that starts an entry of ours: another script may need what lies beside it.
    """
    starts_entry = any(Path(word).name in OUR_ENTRIES for word in command)
    return SAFE_PATH if starts_entry else {}


# ---- What is started -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingCommand:
    """What a command of train or distill asks for."""

    verb: str
    subject: str  # a stage, or the level of a student
    options: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)  # key.sub=value


def parse_training(command: list[str]) -> TrainingCommand | None:
    """The part of a command behind train or distill; None if it is of another verb."""
    verbs = [Path(entry).stem for entry in ENTRIES]
    for index, word in enumerate(command):
        name = Path(word).name
        rest = command[index + 1 :]
        if name in ENTRIES:
            return read_arguments(Path(name).stem, rest)
        if name == "megajukebox" and rest and rest[0] in verbs:
            return read_arguments(rest[0], rest[1:])
    return None


def read_arguments(verb: str, words: list[str]) -> TrainingCommand:
    """`STAGE --option value --option=value key.sub=value ...`"""
    options: dict[str, str] = {}
    positional: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            positional.append(word)
        elif name not in FLAGS:
            options[name] = value if equals else next(remaining, "")
    subjects = [word for word in positional if "=" not in word]
    if len(subjects) != 1:
        raise UserError(f"{verb} takes one stage or level; the command has {subjects or 'none'}")
    settings = [word for word in positional if "=" in word]
    return TrainingCommand(verb, subjects[0], options, settings)
