"""Whether the model hub answers: asked once a process, and given up after a stated time."""

from __future__ import annotations

import os
import sys
import threading
from functools import cache
from typing import Any

from sllm_tune.errors import TaskError
from sllm_tune.wording import without_secrets

ANSWER_SECONDS = 10.0


def require_no_folder(data_set: str, where: object) -> None:
    """Refuse the name of a data set that `datasets` would take for something where the command was started.

    Raises:
        TaskError: there is a file or a folder of that name.
    """
    if os.path.exists(data_set):
        raise TaskError(
            f"{where}: dataset_path {data_set!r} names a data set of the hub, and {os.path.abspath(data_set)} would be "
            "read in its place.\n  Start the command in another folder, or rename that one."
        )


@cache
def use_hub() -> None:
    """Ask the hub for a sign of life; where there is none, its libraries use their cache alone from then on.

    By themselves they ask again for each of the files of a model, about 80 seconds each, without a word; some of their
    calls would wait for ever.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import get_session
    from huggingface_hub.utils._http import default_client_factory

    if constants.HF_HUB_OFFLINE:
        return

    def client() -> Any:
        made = default_client_factory()
        made.timeout = ANSWER_SECONDS  # of each read, where a call names no other
        return made

    set_client_factory(client)
    said = [f"no answer in {ANSWER_SECONDS:.0f} seconds"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, follow_redirects=False)
            said.clear()
        except Exception as error:  # of the network, of a proxy, of a certificate
            if "timed out" not in str(error):
                said[:] = [f"{type(error).__name__}: {error}"]

    asking = threading.Thread(target=ask, daemon=True)  # looking a name up has no time-out of its own
    asking.start()
    asking.join(ANSWER_SECONDS)
    if said:
        import datasets.config

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        where = f"{without_secrets(constants.ENDPOINT)} ({without_secrets(said[0])})"
        print(f"the hub cannot be reached at {where}; only what is in its cache here is used", file=sys.stderr)
