"""A hub that does not answer is given up after a stated time, and said."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

ASK = """
import time
from sllm_tune.model import hub
hub.ANSWER_SECONDS = 1.0
from pathlib import Path
from sllm_tune.errors import BadInput
started = time.monotonic()
try:
    {what}
except BadInput as error:
    print(error)
print("seconds:", time.monotonic() - started)
"""
BASE = """
    from sllm_tune.model.find import find_base
    from sllm_tune.model.load import load_encoder
    from sllm_tune.recipe.base_model import BaseModelSection
    base = BaseModelSection(path="example/nowhere")
    load_encoder(find_base(base, Path()), base)"""
CHECKPOINT = """
    from sllm_tune.model.find import Base
    from sllm_tune.recipe.base_model import BaseModelSection
    Base(section=BaseModelSection(path="example/nowhere"), folder=Path()).checkpoint"""
ROWS = """
    from sllm_tune.data.hub import hub_rows
    from sllm_tune.tasks.find import TaskFile
    config = {"dataset_path": "example/nowhere", "training_split": "train", "test_split": "test"}
    hub_rows(TaskFile("x", Path("x.yaml"), config), ("train", "test"))"""
SHIPPED = """
    from sllm_tune.tasks.shipped import build_shipped
    build_shipped("piqa")"""


@pytest.fixture
def silent_hub() -> Generator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in taken:
            connection.close()


def asked(what: str, endpoint: str, tmp_path: Path) -> tuple[str, str]:
    """Standard output and error of a process with this hub."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", ASK.format(what=what)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("what", [BASE, CHECKPOINT, ROWS, SHIPPED], ids=["base", "checkpoint", "rows", "shipped"])
def test_a_hub_that_says_nothing_is_given_up_and_said_once(what: str, silent_hub: str, tmp_path: Path):
    out, err = asked(what, silent_hub, tmp_path)
    assert err.count("the hub cannot be reached") == 1
    assert f"{silent_hub} (no answer in 1 seconds); only what is in its cache here is used" in err
    assert "example/nowhere" in out or "piqa" in out
    assert float(out.rpartition("seconds:")[2]) < 40  # most of it imports


def test_a_hub_that_is_not_there_is_said_at_once_without_its_password(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    out, err = asked(BASE, f"http://kim:s3cret@127.0.0.1:{port}", tmp_path)
    assert "the hub cannot be reached" in err
    assert "s3cret" not in out + err
    assert "example/nowhere: not found as a folder here or a model on the hub" in out
    assert time.monotonic() - started < 60


def test_the_hub_is_not_asked_where_the_user_works_offline(
    silent_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert "cannot be reached" not in asked(BASE, silent_hub, tmp_path)[1]
