"""Who this process is: reads whichever launcher's variables are there (deepspeed, torchrun, srun, mpirun, or none)."""

import os
import random
import socket
from contextlib import suppress
from typing import NamedTuple

MPI_NAMES = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE")
SOURCES = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    (
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_STEP_NUM_TASKS",
    ),  # the last one only under srun, not in the job's script
    MPI_NAMES,
)

PORTS = (10_000, 32_768)  # above them Linux, and above 49152 other systems, choose ports themselves


class World(NamedTuple):
    rank: int
    local_rank: int
    size: int


def world() -> World:
    """This process's place, written back to the five variables that torch and DeepSpeed read.

    Raises ValueError if a launcher of several processes did not say where rank 0 listens; mpirun need not.
    """
    found = next((names for names in SOURCES if all(n in os.environ for n in names)), None)
    here = World(*(int(os.environ[n]) for n in found)) if found else World(0, 0, 1)
    told = "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ
    if here.size > 1 and not told and found == MPI_NAMES:
        meet_by_mpi(here.rank)
    elif here.size > 1 and not told:
        raise ValueError(
            f"{here.size} processes were started by {found[0] if found else '?'} without MASTER_ADDR and MASTER_PORT;"
            " export both"
        )
    os.environ |= {
        "RANK": str(here.rank),
        "LOCAL_RANK": str(here.local_rank),
        "WORLD_SIZE": str(here.size),
    }
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    return here


def ranks_here() -> int:
    """How many ranks of this launch are on this machine; 1 where no launcher says."""
    names = (
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "SLURM_STEP_TASKS_PER_NODE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    )
    told = next((os.environ[name] for name in names if name in os.environ), "1")
    return int(told.partition("(")[0].partition(",")[0])  # SLURM: "8(x64)"


def meet_by_mpi(rank: int) -> None:
    """Rank 0 chooses where to meet and MPI tells the others; with that MPI's work is done."""
    import mpi4py

    mpi4py.rc.finalize = False
    from mpi4py import MPI

    alone = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == os.environ["OMPI_COMM_WORLD_SIZE"]
    mine = ("127.0.0.1" if alone else socket.gethostname(), str(free_port())) if rank == 0 else None
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = MPI.COMM_WORLD.bcast(mine)
    MPI.Finalize()


def host() -> str:
    """The name of this machine, as SLURM calls it where there is SLURM."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def free_port() -> int:
    """A port that nobody listens on now, of those that no system gives to whoever asks for any: until a process of ours
    has started and listens there, another's connection may have taken one of those.
    """
    draw = random.SystemRandom()  # the seeded generators are the training's
    for _ in range(1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port := draw.randrange(*PORTS)))
            return port
    raise OSError(f"no port from {PORTS[0]} to {PORTS[1]} is free")
