"""Rank and world size of this process, from the variables of deepspeed, torchrun, srun, mpirun,
or none.
"""

import os
import random
import socket
from contextlib import suppress
from typing import NamedTuple

from megajukebox.common.errors import UserError

MPI_NAMES = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE")
SOURCES = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    # the last one only under srun, not in the job's script
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    MPI_NAMES,
)

# Above them Linux, and above 49152 other systems, choose ports for sockets that name none.
PORTS = (10_000, 32_768)
MAX_PORT_TRIES = 1000
MPI_MESSAGE_BYTES = 512  # for a host's name, of at most 253, and a port


class World(NamedTuple):
    """The place of one process among those of a launch."""

    rank: int
    local_rank: int
    size: int


def world() -> World:
    """This process's ranks, written back to the five variables that torch and DeepSpeed read.

    Raises:
        UserError: a launcher of several processes gave no address of rank 0; mpirun need not.
    """
    here = World(0, 0, 1)
    launcher = None
    for names in SOURCES:
        if os.environ.keys() >= set(names):
            here = World(*(int(os.environ[name]) for name in names))
            launcher = names
            break
    has_address = "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ
    if here.size > 1 and not has_address:
        if launcher != MPI_NAMES:
            variable = launcher[0] if launcher else "?"
            raise UserError(
                f"{here.size} processes were started by {variable} without MASTER_ADDR and MASTER_PORT;"
                " export both"
            )
        share_address_by_mpi(here.rank)
    os.environ |= {
        "RANK": str(here.rank),
        "LOCAL_RANK": str(here.local_rank),
        "WORLD_SIZE": str(here.size),
    }
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    return here


def ranks_here() -> int:
    """How many ranks of this launch are on this machine; 1 without a launcher's variable."""
    names = (
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "SLURM_STEP_TASKS_PER_NODE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    )
    for name in names:
        if name in os.environ:
            return int(os.environ[name].partition("(")[0].partition(",")[0])  # SLURM: "8(x64)"
    return 1


def share_address_by_mpi(rank: int) -> None:
    """Rank 0 chooses its address and a port, MPI broadcasts them; with that MPI's work is done."""
    import mpi4py

    mpi4py.rc.finalize = False
    from mpi4py import MPI

    alone = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == os.environ["OMPI_COMM_WORLD_SIZE"]
    message = bytearray(MPI_MESSAGE_BYTES)  # MPI's own objects would be pickled
    if rank == 0:
        name = "127.0.0.1" if alone else socket.gethostname()
        address = f"{name} {free_port()}".encode()
        message[: len(address)] = address
    MPI.COMM_WORLD.Bcast([message, MPI.BYTE])
    host_name, port = message.rstrip(b"\0").decode().split()
    os.environ["MASTER_ADDR"] = host_name
    os.environ["MASTER_PORT"] = port
    MPI.Finalize()


def host() -> str:
    """The name of this machine, as SLURM calls it where there is SLURM."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def free_port() -> int:
    """A port on which no process listens now.

    Of PORTS, which no system gives to sockets by itself: else a connection of another program may
    take it before our process has started and listens there.
    """
    generator = random.SystemRandom()  # the seeded generators belong to training
    for _ in range(MAX_PORT_TRIES):
        port = generator.randrange(*PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"no port from {PORTS[0]} to {PORTS[1]} is free")
