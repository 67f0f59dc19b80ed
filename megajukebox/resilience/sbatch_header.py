"""The #SBATCH lines of a script as the variables that its job would have: for a dry run without SLURM.

    python -m megajukebox.resilience.sbatch_header slurm/top_prior.sh --nodes=16     # options as for sbatch

slurm/cluster.sh evaluates what it prints. Node names and the job's number are SLURM's to give, so they are missing.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.common.untrusted_files import read_given

MARK = "#SBATCH"


def sbatch_words(script: Path) -> list[str]:
    """The options in the head of a script: SLURM, too, reads no further than the first command."""
    words: list[str] = []
    try:
        lines = read_given(script).decode(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{script}: {error.strerror}") from None
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith(MARK):
            words += shlex.split(line.removeprefix(MARK), comments=True)
    return words


def job_variables(script: Path, options: list[str]) -> dict[str, str]:
    """Of a job of `script`, submitted with further `options`; later ones count.

    Raises:
        UserError: a number is none.
    """
    words = [*sbatch_words(script), *options]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-J", "--job-name", default=script.stem)
    parser.add_argument("-a", "--array")
    parser.add_argument("--gres", default="")
    counts = {
        "-N --nodes": "1",
        "-n --ntasks": None,
        "--ntasks-per-node": None,
        "-c --cpus-per-task": None,
        "--gpus-per-node": None,
    }
    for names, default in counts.items():
        parser.add_argument(*names.split(), default=default)
    given, _ = parser.parse_known_args(words)
    nodes = whole_number("nodes", given.nodes)
    per_node = whole_number("ntasks-per-node", given.ntasks_per_node)
    tasks = whole_number("ntasks", given.ntasks) or (nodes or 1) * (per_node or 1)
    gpus = given.gpus_per_node or given.gres.partition("gpu")[2].rpartition(":")[2]
    variables = {
        "SLURM_JOB_NAME": given.job_name,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_NTASKS": tasks,
        "SLURM_NTASKS_PER_NODE": per_node,
        "SLURM_CPUS_PER_TASK": whole_number("cpus-per-task", given.cpus_per_task),
        "SLURM_GPUS_ON_NODE": whole_number("gres", gpus) or 0,
        "DRY_RUN_SBATCH": shlex.join(words),
        "DRY_RUN_SUBMISSION": shlex.join([*options, str(script)]),
    }
    if given.array:
        first, count = array_tasks(given.array)
        variables |= {"SLURM_ARRAY_TASK_ID": first, "SLURM_ARRAY_TASK_COUNT": count}
    return {name: str(value) for name, value in variables.items() if value is not None}


def whole_number(option: str, text: str | None) -> int | None:
    """`66`, or the larger of `64-66`; None where nothing is given."""
    if not text:
        return None
    if not re.fullmatch(r"(\d+-)?\d+", text):
        raise UserError(f"--{option}={text} is no number of SLURM's")
    return int(text.rpartition("-")[2])


def array_tasks(text: str) -> tuple[int, int]:
    """The first number of an array and how many there are: 1-60%1 is (1, 60)."""
    numbers: list[int] = []
    for part in text.partition("%")[0].split(","):
        matched = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if matched is None:
            raise UserError(f"--array={text} is no list of SLURM's, such as 1-60%1")
        first = int(matched[1])
        numbers += range(first, int(matched[2] or first) + 1, int(matched[3] or 1))
    return min(numbers), len(numbers)


if __name__ == "__main__":
    try:
        for name, value in job_variables(Path(sys.argv[1]), sys.argv[2:]).items():
            print(f"export {name}={shlex.quote(value)}")
    except UserError as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(EXIT_FATAL)
