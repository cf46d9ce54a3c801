"""The processes of a launcher: which one this is, and waiting for the first, which makes what is made once."""

import os
import time
from collections.abc import Callable

from sllm_tune.errors import BadInput

# What a launcher sets for each process. One alone is a left-over, and its process would wait for others for ever.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")


def require_launcher() -> None:
    """Refuse the variables of a launcher where there is none.

    Raises:
        BadInput: some are set and others not, or they are not numbers of processes.
    """
    found = {name: os.environ[name] for name in LAUNCHED if name in os.environ}
    if not {"RANK", "LOCAL_RANK"}.intersection(found):
        return
    numbers = [found.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    whole = all(number.isascii() and number.isdigit() for number in numbers)
    if len(found) < len(LAUNCHED) or not whole or int(numbers[0]) >= int(numbers[2]):
        stated = ", ".join(f"{name} is {found[name]!r}" if name in found else f"{name} is not set" for name in LAUNCHED)
        raise BadInput(
            f"the environment is not that of a launcher: {stated}.\n"
            "  For one process, `unset RANK LOCAL_RANK`; for several, start it with `accelerate launch`."
        )


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return "RANK" in os.environ


def rank() -> int:
    """The number of this process among all; 0 is the first, which owns the run folder."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def wait_until(done: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Look again and again; if the first process fails instead, the launcher ends this one too."""
    while not done():
        time.sleep(0.2)
        meanwhile()


def meet() -> None:
    """Go on when every process of the launcher is here; at once where there is none."""
    if is_launched():
        from accelerate import PartialState

        PartialState().wait_for_everyone()
