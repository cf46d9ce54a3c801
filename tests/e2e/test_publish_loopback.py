"""A run pushed to a hub on loopback by the unmodified client, pulled back by plain libraries, and cut on the way."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import READ_ONLY, TOKEN, Hub, serving

PUSH = """
import json, sys
from sllm_tune.deliver.publish import describe, publish
from sllm_tune.errors import SllmTuneError
try:
    print(describe(publish(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))))
except SllmTuneError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""
ADAPTER = {"base_id": "maker/base", "yes": True}
MERGED = {"format": "merged", "licence": "apache-2.0", "yes": True}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def hub(tiny_base: Path) -> Generator[Hub]:
    with serving() as hub:
        hub.seed("maker/base", tiny_base, "apache-2.0")
        yield hub


def environment(hub: Hub, folder: Path, token: str = TOKEN) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return {**os.environ, **own, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}


def command(run: Path, repo: str, options: dict[str, Any]) -> list[str]:
    return [sys.executable, "-c", PUSH, str(run), repo, json.dumps(options)]


def push(
    hub: Hub, run: Path, options: dict[str, Any], repo: str = "firm/specialist", token: str = TOKEN
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(run, repo, options),
        env=environment(hub, run.parent, token),
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


def python(hub: Hub, folder: Path, code: str, *arguments: str) -> str:
    made = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(made, env=environment(hub, folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOGITS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
print(model(torch.arange(24)[None]).logits.double().sum(-1).tolist())
"""


def test_a_dry_run_sends_nothing(hub: Hub, run: Path) -> None:
    done = push(hub, run, {"base_id": "maker/base"})
    assert done.returncode == 0, done.stderr
    assert "firm/specialist (private), adapter" in done.stdout
    assert "adapter_model.safetensors" in done.stdout
    assert "license: apache-2.0" in done.stdout
    assert "Nothing was sent" in done.stdout
    assert list(hub.repos) == ["maker/base"]
    assert not [asked for asked in hub.asked if asked.startswith(("POST", "PUT"))]


def test_an_adapter_is_pushed_once_and_gives_the_same_logits_by_plain_peft(
    hub: Hub, run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    first = push(hub, run, ADAPTER)
    assert first.returncode == 0, first.stderr
    assert "pushed: " in first.stdout
    second = push(hub, run, ADAPTER)
    assert second.returncode == 0, second.stderr
    assert "nothing changed since the last push" in second.stdout
    assert hub.pushes("firm/specialist") == 1
    assert hub.repos["firm/specialist"].private
    files = hub.repos["firm/specialist"].commits[-1]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "maker/base"
    assert not any(TOKEN.encode() in content for content in files.values())
    assert not any(TOKEN.encode() in path.read_bytes() for path in run.rglob("*") if path.is_file())
    pulled = python(hub, tmp_path, LOGITS, "maker/base", "firm/specialist")
    assert pulled == python(hub, tmp_path, LOGITS, str(tiny_base), str(run / "adapter"))


@pytest.mark.parametrize("options", [ADAPTER, MERGED])
def test_the_lines_of_the_card_load_what_was_pushed(
    hub: Hub, run: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert push(hub, run, options).returncode == 0
    card = hub.repos["firm/specialist"].commits[-1]["README.md"].decode()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert lines
    python(hub, tmp_path, lines[1])


# Where the connection breaks, and whether the request was served by then.
CUTS: dict[str, tuple[str, bool]] = {
    "card": ("POST /api/validate-yaml", False),
    "create": ("POST /api/repos/create", False),
    "preupload": ("POST /api/models/firm/specialist/preupload/main", False),
    "halfway through the weights": ("PUT /lfs/", False),
    "weights stored, answer lost": ("PUT /lfs/", True),
    "commit": ("POST /api/models/firm/specialist/commit/main", False),
    "committed, answer lost": ("POST /api/models/firm/specialist/commit/main", True),
}


def breaking(hub: Hub, at: str) -> None:
    start, is_served = CUTS[at]
    meets: Callable[[str], bool] = lambda asked: asked.startswith(start)  # noqa: E731
    if is_served:
        hub.hang_up_after = meets
    else:
        hub.hang_up = meets


@pytest.mark.parametrize("at", CUTS)
def test_a_push_killed_on_the_way_is_complete_after_the_next_with_one_commit(hub: Hub, run: Path, at: str) -> None:
    breaking(hub, at)
    process = subprocess.Popen(
        command(run, "firm/specialist", ADAPTER),
        env=environment(hub, run.parent),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hub.hung_up.wait(60)
    process.kill()
    process.wait()
    done = push(hub, run, ADAPTER)
    assert done.returncode == 0, done.stderr
    assert hub.pushes("firm/specialist") == 1
    sent = hub.repos["firm/specialist"].commits[-1]
    assert sent["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert {"README.md", *(path.name for path in (run / "adapter").iterdir())} == set(sent)


@pytest.mark.parametrize("at", CUTS)
def test_a_hub_that_hangs_up_is_said_or_survived(hub: Hub, run: Path, at: str) -> None:
    breaking(hub, at)
    first = push(hub, run, ADAPTER)
    if first.returncode:  # the client asks for some things only once
        assert first.returncode == 1
        assert "the hub did not answer to the end" in first.stderr
        assert "Run the same command again." in first.stderr
        assert push(hub, run, ADAPTER).returncode == 0
    assert hub.pushes("firm/specialist") == 1


def test_weights_that_have_arrived_are_not_sent_again(hub: Hub, run: Path) -> None:
    breaking(hub, "commit")
    assert push(hub, run, ADAPTER).returncode == 1
    assert push(hub, run, ADAPTER).returncode == 0
    assert len([asked for asked in hub.asked if asked.startswith("PUT")]) == 1


def test_what_the_hub_refuses_is_said_and_leaves_nothing_half_made(hub: Hub, run: Path) -> None:
    for repo, token, said in (
        ("other/specialist", TOKEN, "does not let this token do that (403"),
        ("firm/specialist", READ_ONLY, "does not let this token do that (403"),
        ("firm/specialist", "hf_" + "Wrong0000" * 4, "does not let this token do that (401"),
        ("firm/reserved", TOKEN, "the hub refuses it (400: This name is reserved)"),
    ):
        done = push(hub, run, MERGED, repo, token)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert list(hub.repos) == ["maker/base"]


def test_a_repository_that_the_token_may_only_read_is_refused(hub: Hub, run: Path) -> None:
    assert push(hub, run, MERGED).returncode == 0
    shutil.rmtree(run.parent / "hf", ignore_errors=True)
    done = push(hub, run, {**MERGED, "licence": "mit"}, token=READ_ONLY)
    assert done.returncode == 2, done.stderr
    assert "Take a token with the right to write there" in done.stderr
    assert hub.pushes("firm/specialist") == 1


def test_metadata_that_the_hub_refuses_are_said_in_its_words_and_nothing_is_made(hub: Hub, run: Path) -> None:
    done = push(hub, run, {**MERGED, "licence": "apache2"})
    assert done.returncode == 2
    assert "README.md: the hub refuses its metadata" in done.stderr
    assert "license must be one of apache-2.0" in done.stderr
    assert list(hub.repos) == ["maker/base"]


def test_a_public_repository_and_another_format_are_refused(hub: Hub, run: Path, tiny_base: Path) -> None:
    assert push(hub, run, MERGED).returncode == 0
    mixed = push(hub, run, ADAPTER)
    assert mixed.returncode == 2
    assert "it holds another kind of model (model.safetensors)" in mixed.stderr
    hub.repos["firm/specialist"].private = False
    public = push(hub, run, MERGED)
    assert public.returncode == 2
    assert "it is there and public" in public.stderr
    assert push(hub, run, {**MERGED, "private": False}).returncode == 0


def test_an_adapter_of_another_base_on_the_hub_is_refused(hub: Hub, run: Path, tmp_path: Path, tiny_base: Path) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    hub.seed("maker/other", other, "apache-2.0")
    done = push(hub, run, {**ADAPTER, "base_id": "maker/other"})
    assert done.returncode == 2
    assert "trained on another base than maker/other" in done.stderr
    assert push(hub, run, {**ADAPTER, "base_id": "maker/other", "allow": ["base"]}).returncode == 0


def test_a_base_that_the_hub_does_not_have_is_refused(hub: Hub, run: Path) -> None:
    done = push(hub, run, {**ADAPTER, "base_id": "maker/nowhere"})
    assert done.returncode == 2
    assert "the base maker/nowhere: the hub has none of that name" in done.stderr


def test_a_base_whose_licence_forbids_commercial_use_is_refused_until_allowed_and_said(
    hub: Hub, run: Path, tiny_base: Path
) -> None:
    hub.seed("maker/base", tiny_base, "cc-by-nc-4.0")
    done = push(hub, run, ADAPTER)
    assert done.returncode == 2
    assert "the base's licence is cc-by-nc-4.0" in done.stderr
    wider = push(hub, run, {**ADAPTER, "allow": ["non_commercial"], "licence": "mit"})
    assert wider.returncode == 2
    assert "mit is wider than the licence of" in wider.stderr
    assert push(hub, run, {**ADAPTER, "allow": ["non_commercial"]}).returncode == 0
    assert b"license: cc-by-nc-4.0" in hub.repos["firm/specialist"].commits[-1]["README.md"]


def test_a_hub_that_is_not_there_fails_the_job(hub: Hub, run: Path) -> None:
    hub.url = "http://127.0.0.1:9"
    started = time.monotonic()
    done = push(hub, run, MERGED)
    assert done.returncode == 1
    assert "the hub did not answer to the end" in done.stderr
    assert time.monotonic() - started < 60
