"""How fast an exported file is here and what it takes, in a process that does nothing else: a phone's figures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from sllm_tune.deliver.engine import Engine, LlamaFile
from sllm_tune.deliver.openvino_engine import OpenVinoFile
from sllm_tune.errors import JobFailed
from sllm_tune.evaluate.exported import Speed

PROMPT_TOKENS, ANSWER_TOKENS = 256, 32
LONGEST_SECONDS = 600


def measure(path: Path, threads: int) -> Speed:
    """Load a GGUF file, or a folder of OpenVINO's, and run it.

    Raises:
        JobFailed: the process that measures failed.
    """
    command = [sys.executable, "-m", "sllm_tune.deliver.speed", str(path.absolute()), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
        raise JobFailed(f"{path}: its speed could not be measured ({''.join(said):.200}).") from error
    found = json.loads(done.stdout.splitlines()[-1])
    files = [path] if path.is_file() else [*path.glob("*.xml"), *path.glob("*.bin")]
    return Speed(bytes=sum(file.stat().st_size for file in files), threads=threads, **found)


def _measure(path: Path, threads: int) -> dict[str, float | int]:
    started = time.monotonic()
    file = _opened(path, threads)
    file.next_log_probabilities([0])  # the first call reads the weights
    loaded = time.monotonic()
    prompt = [1 + i % 200 for i in range(PROMPT_TOKENS)]
    answer = [int(file.next_log_probabilities(prompt).argmax())]
    prompted = time.monotonic()
    while len(answer) < ANSWER_TOKENS:
        answer.append(int(file.next_log_probabilities([*prompt, *answer]).argmax()))
    generated = time.monotonic()
    return {
        "load_s": loaded - started,
        "prompt_tokens_per_s": PROMPT_TOKENS / (prompted - loaded),
        "generation_tokens_per_s": (ANSWER_TOKENS - 1) / (generated - prompted),
        "resident_bytes": psutil.Process().memory_info().rss,
    }


def _opened(path: Path, threads: int) -> Engine:
    if path.is_file():
        return LlamaFile(path, threads=threads, window=PROMPT_TOKENS + ANSWER_TOKENS)
    return OpenVinoFile(path, threads=threads)


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]))))
