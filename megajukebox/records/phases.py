"""What a training process can be doing: the one list for the watchdog, heartbeats, metrics and the account of time."""

INIT = "init"  # from the start of the process to its first step
DATA_WAIT = "data_wait"
STEP = "step"
CHECKPOINT_SAVE = "checkpoint_save"
CHECKPOINT_LOAD = "checkpoint_load"
EVAL = "eval"
PHASES = (INIT, DATA_WAIT, STEP, CHECKPOINT_SAVE, CHECKPOINT_LOAD, EVAL)

VERSION_1 = {
    # heartbeats and hangs
    "data": DATA_WAIT,
    "save": CHECKPOINT_SAVE,
    "load": CHECKPOINT_LOAD,
    "evaluate": EVAL,
    # metrics: time_<phase>_seconds
    "productive": STEP,
    "ckpt_save": CHECKPOINT_SAVE,
    "ckpt_restore": CHECKPOINT_LOAD,
}


def upgrade_phase(name: str) -> str:
    """The name of today of a phase as version 1 had it."""
    return VERSION_1.get(name, name)
