"""What the machine is and what work costs on it."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sllm_tune.errors import BadInput
from sllm_tune.runs import machine as hardware
from sllm_tune.runs.machine import Meter, describe, peak_memory_bytes, require_free_bytes, reset_peak_memory


def counter(folder: Path, name: str, microjoules: int) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def without_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_the_machine_is_described_with_the_cores_this_process_may_use(
    without_accelerator: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    name, cores = describe().rsplit(", ", 1)
    assert name
    assert cores == "3 cores"


def test_an_accelerator_is_named_first(monkeypatch: pytest.MonkeyPatch):
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda: "Some GPU")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert describe().startswith("2 x Some GPU; ")


def test_peak_memory_counts_from_the_reset(without_accelerator: None):
    reset_peak_memory()
    before = peak_memory_bytes()
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    during = peak_memory_bytes()
    del block
    assert during - before > 150_000_000
    reset_peak_memory()
    if Path("/proc/self/clear_refs").exists():
        assert during - peak_memory_bytes() > 100_000_000


def test_too_little_room_is_refused_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_000_000))
    require_free_bytes(tmp_path, 12_000_000, "the checkpoints")
    with pytest.raises(BadInput) as caught:
        require_free_bytes(tmp_path, 80_400_000, "the checkpoints of this run")
    assert str(caught.value) == (
        f"{tmp_path}: 12 MB free, but the checkpoints of this run need about 80 MB.\n"
        "  Free some space, or name a run folder on another disk with --run-dir."
    )


def test_energy_is_what_the_counters_of_all_packages_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_accelerator: None
):
    monkeypatch.setattr(hardware, "RAPL", tmp_path)
    counter(tmp_path, "intel-rapl:0", 5_000_000)
    counter(tmp_path, "intel-rapl:1", 1_000_000)
    counter(tmp_path, "intel-rapl:0:0", 99_000_000)  # a part of package 0, not to be counted twice
    meter = Meter()
    counter(tmp_path, "intel-rapl:0", 3_605_000_000)
    counter(tmp_path, "intel-rapl:1", 3_601_000_000)
    cost = meter.stop()
    assert cost["energy_wh"] == pytest.approx(2.0)
    assert cost["seconds"] is not None
    assert 0 <= cost["seconds"] < 5


def test_energy_is_unknown_without_a_counter_or_when_it_started_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_accelerator: None
):
    monkeypatch.setattr(hardware, "RAPL", tmp_path)
    assert Meter().stop()["energy_wh"] is None
    counter(tmp_path, "intel-rapl:0", 5_000_000)
    meter = Meter()
    counter(tmp_path, "intel-rapl:0", 1_000_000)
    assert meter.stop()["energy_wh"] is None
