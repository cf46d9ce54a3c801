"""What this machine is, and what a piece of work cost on it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from sllm_tune.errors import BadInput

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
RAPL = Path("/sys/class/powercap")


def describe() -> str:
    """The processor or accelerators, in words, with the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    words = f"{name}, {cores} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        words = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}; {words}"
    return words


def keep_freed_memory() -> None:
    """Let the allocator keep large freed blocks for the next step, where the C library is glibc.

    It would hand them back to the kernel and fault them in again at every step; keeping them made a training step on
    two cores about a fifth faster.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def reset_peak_memory() -> None:
    """Count `peak_memory_bytes` from here, where the system allows it (CUDA, Linux)."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier work freed is not this work's memory
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most memory held since `reset_peak_memory`: on the accelerator where there is one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if (status := Path("/proc/self/status")).exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory_bytes() -> int:
    """What this process may still allocate: free memory of the machine, or less in a control group with a limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limits = [
        _group_room("memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "rss"),  # version 1 of Linux's groups
        _group_room("", "/sys/fs/cgroup", "memory.max", "anon"),
    ]
    return min([free, *(limit for limit in limits if limit is not None)])


def _group_room(controller: str, root: str, limit_file: str, held: str) -> int | None:
    """Bytes that this process's control group may still hold, pages of files left out; None where it has no limit."""
    with contextlib.suppress(OSError, ValueError):
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        path = next(path for _, names, path in lines if controller in names.split(","))
        group = Path(root + path)
        limit = int((group / limit_file).read_text())  # "max" is not a number
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - int(stat[held])
    return None


def require_free_bytes(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse before work starts when `folder` has no room for what the work will write.

    Raises:
        BadInput: less than `needed_bytes` are free; names both figures.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise BadInput(
            f"{folder}: {free_bytes / 1e6:.0f} MB free, but {what} need about {needed_bytes / 1e6:.0f} MB.\n"
            "  Free some space, or name a run folder on another disk with --run-dir."
        )


@dataclass
class Meter:
    """Seconds and watt-hours between its making and `stop`."""

    started_s: float = field(default_factory=time.monotonic)
    started_joules: float | None = field(default_factory=lambda: _joules())

    def stop(self) -> dict[str, float | None]:
        """`seconds`, and `energy_wh`, which is None where the machine has no readable counter."""
        now = _joules()
        known = self.started_joules is not None and now is not None and now >= self.started_joules
        energy_wh = (now - self.started_joules) / 3600 if known else None  # type: ignore[operator]
        return {"seconds": round(time.monotonic() - self.started_s, 3), "energy_wh": energy_wh}


def _joules() -> float | None:
    """Package energy counters (RAPL) plus, with an accelerator, NVML's; None unless every one can be read."""
    try:
        counters = [int(p.read_text()) / 1e6 for p in RAPL.glob("intel-rapl:?/energy_uj")]
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            import pynvml  # type: ignore[import-not-found]

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(torch.cuda.device_count())]
            counters += [pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3 for h in handles]
    except (OSError, ImportError, ValueError):
        return None
    return sum(counters) if counters else None
