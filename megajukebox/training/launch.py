"""Who this process is: reads whichever launcher's variables are there (deepspeed, torchrun, srun, mpirun, or none)."""

import os
import socket
from typing import NamedTuple

SOURCES = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)


class World(NamedTuple):
    rank: int
    local_rank: int
    size: int


def world() -> World:
    """This process's place, written back to the five variables that torch and DeepSpeed read.

    Raises ValueError if a launcher of several processes did not say where rank 0 listens.
    """
    found = next((names for names in SOURCES if all(n in os.environ for n in names)), None)
    here = World(*(int(os.environ[n]) for n in found)) if found else World(0, 0, 1)
    if here.size > 1 and not ("MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ):
        raise ValueError(
            f"{here.size} processes were started by {found[0] if found else '?'} without MASTER_ADDR and MASTER_PORT;"
            " export both"
        )
    os.environ |= {"RANK": str(here.rank), "LOCAL_RANK": str(here.local_rank), "WORLD_SIZE": str(here.size)}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    return here


def host() -> str:
    """The name of this machine, as SLURM calls it where there is SLURM."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
