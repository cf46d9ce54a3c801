"""Sources: a path, or one file in a wheel that the real pip downloads, here from a local folder or server."""

import base64
import errno
import fcntl
import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sllm_tune import sources
from sllm_tune.errors import SourceError

WHERE = "recipes/legal/tasks/clauses.yaml: metadata"
ROWS = b'{"question": "1"}\n' * 2000
MEMBERS = {
    "clauses/__init__.py": b"raise RuntimeError('the package was imported')\n",
    "clauses/data/test.jsonl": ROWS,
    "clauses/data/train.jsonl": b'{"question": "2"}\n',
}
SOURCE = "pypi:clauses==1.0/clauses/data/test.jsonl"


def make_wheel(folder: Path, members: dict[str, bytes] = MEMBERS, version: str = "1.0") -> Path:
    info = f"clauses-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: clauses\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **members,
    }
    record = [f"{name},sha256={urlsafe_hash(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(exist_ok=True)
    wheel = folder / f"clauses-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


def urlsafe_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the only place where pip may look; the cache is a folder in tmp_path, too."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheelhouse"))
    monkeypatch.setenv("SLLM_TUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wheelhouse").mkdir()
    return tmp_path / "wheelhouse"


def get(source: str, recorded: str | None) -> Path:
    return sources.fetch(source, sha256=recorded, where=WHERE, base_dir=Path("."))


def refusal(source: str, recorded: str | None) -> str:
    with pytest.raises(SourceError) as caught:
        get(source, recorded)
    assert caught.value.exit_status == 2
    assert str(caught.value).startswith(f"{WHERE}: ")
    return str(caught.value)


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pip was started")

    monkeypatch.setattr(sources.subprocess, "Popen", refuse)


def kept_files() -> list[Path]:
    return [path for path in sources.cache_dir().rglob("*") if path.is_file()]


@contextmanager
def registry(monkeypatch: pytest.MonkeyPatch, status: int) -> Iterator[str]:
    """A registry that answers every request with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield use_index(monkeypatch, server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_index(monkeypatch: pytest.MonkeyPatch, port: int) -> str:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://reader:hunter2@127.0.0.1:{port}/simple")
    return f"127.0.0.1:{port}/simple/clauses/"


def test_a_wheel_is_downloaded_once_and_then_needs_no_network(
    wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(wheelhouse)
    recorded = sha256(wheel)
    first = get(SOURCE, recorded)
    assert first.read_bytes() == ROWS
    assert first == sources.cache_dir() / "pypi" / recorded / "members/clauses/data/test.jsonl"

    shutil.rmtree(wheelhouse)
    forbid_pip(monkeypatch)
    assert get(SOURCE, recorded.upper()) == first
    other = get("pypi:clauses==1.0/clauses/data/train.jsonl", recorded)
    assert other.read_bytes() == MEMBERS["clauses/data/train.jsonl"]
    assert sorted(kept_files()) == sorted([first, other, sources.cache_dir() / "pypi" / recorded / "wheel.whl"])


def test_a_package_is_read_and_neither_imported_nor_resolved(wheelhouse: Path, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'imported')!r}, 'w')\n".encode()
    metadata = b"Metadata-Version: 2.1\nName: clauses\nVersion: 1.0\nRequires-Python: >=9\nRequires-Dist: nowhere\n"
    members = {"clauses/__init__.py": trap, "setup.py": trap, "clauses-1.0.dist-info/METADATA": metadata}
    wheel = make_wheel(wheelhouse, members)
    assert get("pypi:clauses==1.0/clauses/__init__.py", sha256(wheel)).read_bytes() == trap
    assert not (tmp_path / "imported").exists()
    assert "clauses" not in sys.modules


def test_hash_mismatch_names_both_hashes_and_keeps_nothing(wheelhouse: Path) -> None:
    wheel = make_wheel(wheelhouse)
    message = refusal(SOURCE, "0" * 64)
    assert "does not have the recorded SHA-256; nothing was kept" in message
    assert f"expected {'0' * 64}" in message
    assert f"got      {sha256(wheel)}" in message
    assert kept_files() == []


def test_a_wheel_that_pip_lets_through_is_hashed_again(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(wheelhouse)
    monkeypatch.setattr(sources, "_pip_download", lambda *_: wheel)
    assert f"got      {sha256(wheel)}" in refusal(SOURCE, "0" * 64)
    assert kept_files() == []


def test_a_missing_member_offers_the_nearest(wheelhouse: Path) -> None:
    recorded = sha256(make_wheel(wheelhouse))
    message = refusal("pypi:clauses==1.0/clauses/data/tset.jsonl", recorded)
    assert "the wheel has no such file" in message
    assert "Did you mean clauses/data/test.jsonl" in message
    assert "Did you mean clauses/data/test.jsonl?" in refusal("pypi:clauses==1.0/data/test.jsonl", recorded)
    assert "None of its 6 files has a similar name" in refusal("pypi:clauses==1.0/xyz", recorded)


@pytest.mark.parametrize(
    "member",
    ["../clauses.py", "clauses/../../x", "/etc/passwd", "clauses//x", "clauses/", "./x", "a\\b", "C:/x", "a\0b", "a\n"],
)
def test_a_member_that_is_not_a_plain_name_is_refused(
    member: str, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_pip(monkeypatch)
    message = refusal(f"pypi:clauses==1.0/{member}", "0" * 64)
    assert f"{member!r} is refused as the name of a file in a wheel" in message


@pytest.mark.parametrize(
    "source",
    [
        "pypi:clauses",
        "pypi:clauses/x",
        "pypi:clauses==1.0",
        "pypi:clauses>=1.0/x",
        "pypi:clauses==1.*/x",
        "pypi:==1.0/x",
        "pypi:-r other==1/x",
        "pypi:clauses==1.0 --index-url=x/x",
        "pypi:clauses==1.0\n/x",
    ],
)
def test_a_malformed_pypi_source_is_refused_with_the_form(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_pip(monkeypatch)
    assert sources.is_pypi(source)
    assert "The form is pypi:NAME==VERSION/path/in/wheel" in refusal(source, "0" * 64)


def test_a_pypi_source_without_its_hash_says_which_key_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_pip(monkeypatch)
    assert "Add the key sha256: with the SHA-256 of the wheel of clauses 1.0" in refusal(SOURCE, None)
    assert "sha256 must be 64 hexadecimal digits (got 'abc')" in refusal(SOURCE, "abc")


def test_files_cut_short_by_a_crash_are_made_again(wheelhouse: Path) -> None:
    recorded = sha256(make_wheel(wheelhouse))
    member = get(SOURCE, recorded)
    wheel = sources.cache_dir() / "pypi" / recorded / "wheel.whl"

    os.truncate(member, 100)
    assert get(SOURCE, recorded).read_bytes() == ROWS
    member.write_bytes(b"x" * len(ROWS))
    assert get(SOURCE, recorded).read_bytes() == ROWS

    os.truncate(wheel, wheel.stat().st_size // 2)
    assert get(SOURCE, recorded).read_bytes() == ROWS
    assert sha256(wheel) == recorded


def test_an_extracted_file_with_the_right_size_and_crc_is_still_told_from_the_right_one(wheelhouse: Path) -> None:
    recorded = sha256(make_wheel(wheelhouse))
    member = get(SOURCE, recorded)
    forged = b"\x00" * (len(ROWS) - 4)
    wanted, tail = zlib.crc32(ROWS), list[int]()
    # The four bytes that give the checksum: run the register backwards from it, then forwards from what is forged.
    lookup = [zlib.crc32(bytes([byte]), 0xFFFFFFFF) ^ 0xFFFFFFFF for byte in range(256)]
    top = {entry >> 24: index for index, entry in enumerate(lookup)}
    state = wanted ^ 0xFFFFFFFF
    for _ in range(4):
        index = top[state >> 24]
        tail.insert(0, index)
        state = ((state ^ lookup[index]) << 8) & 0xFFFFFFFF
    register, patch = zlib.crc32(forged) ^ 0xFFFFFFFF, bytearray()
    for index in tail:
        patch.append((register ^ index) & 0xFF)
        register = (register >> 8) ^ lookup[index]
    member.write_bytes(forged + bytes(patch))
    assert (member.stat().st_size, zlib.crc32(member.read_bytes())) == (len(ROWS), wanted)
    assert get(SOURCE, recorded).read_bytes() == ROWS


@pytest.mark.parametrize("name", ["pip.py", "pip/__main__.py", "runpy.py"])
def test_nothing_in_the_working_folder_is_run_in_pips_place(
    name: str, wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working"
    (folder / name).parent.mkdir(parents=True)
    (folder / "pip").mkdir(exist_ok=True)
    (folder / name).write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    monkeypatch.chdir(folder)
    assert get(SOURCE, sha256(make_wheel(wheelhouse))).read_bytes() == ROWS
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    "address", ["https://x/simple?token=hunter2", "https://a:hunter2@x/s", "http://x/?a=b&k=hunter2"]
)
def test_what_pip_said_is_quoted_without_secrets(address: str) -> None:
    assert "hunter2" not in sources._quote([f"Could not fetch URL {address}: refused"])[0]  # pyright: ignore[reportPrivateUsage]


def test_a_download_that_goes_on_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sources, "_SAID_SECONDS", 0.2)
    command = [sys.executable, "-c", "import time; time.sleep(0.7)"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert sources._wait(process, "clauses==1.0") == ""  # pyright: ignore[reportPrivateUsage]
    assert "pip still downloads clauses==1.0, after 50 s" in capsys.readouterr().err


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_uses_is_not(wheelhouse: Path) -> None:
    recorded = sha256(make_wheel(wheelhouse))
    get(SOURCE, recorded)
    killed, live, just_made = [sources.cache_dir() / "pypi" / f".part-{name}" for name in ("killed", "live", "new")]
    for folder in (killed, live, just_made):
        folder.mkdir()
        (folder / "lock").touch()
    for folder in (killed, live):
        os.utime(folder, (time.time() - 100, time.time() - 100))
    with open(live / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        get(SOURCE, recorded)
    assert [folder.exists() for folder in (killed, live, just_made)] == [False, True, True]


def test_two_processes_at_once_both_get_the_file(wheelhouse: Path) -> None:
    recorded = sha256(make_wheel(wheelhouse))
    call = f"fetch({SOURCE!r}, sha256={recorded!r}, where='', base_dir=Path('.'))"
    code = f"from pathlib import Path; from sllm_tune.sources import fetch; print({call})"
    root = Path(sources.__file__).parents[1]
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0].decode().strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert paths == {str(get(SOURCE, recorded))}
    assert list(sources.cache_dir().glob("pypi/.part-*")) == []


def test_a_version_that_is_not_there_is_told_from_an_unreachable_registry(wheelhouse: Path) -> None:
    make_wheel(wheelhouse, version="0.8")
    make_wheel(wheelhouse, version="0.9")
    message = refusal(SOURCE, "0" * 64)
    assert "there is no wheel of clauses==1.0" in message
    assert "There are versions 0.8, 0.9." in message
    assert "not reachable" not in message


def test_an_unreachable_registry_says_so_and_keeps_passwords(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = use_index(monkeypatch, closed.getsockname()[1])
        message = refusal(SOURCE, "0" * 64)
    assert "the package registry is not reachable" in message
    assert address in message
    assert "Connection refused" in message
    assert "hunter2" not in message
    assert "PIP_INDEX_URL" in message
    assert f"fetched once is kept in {sources.cache_dir()}" in message


def test_a_registry_that_never_answers_is_given_up(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_REGISTRY_SECONDS", 5.0)
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "300")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = use_index(monkeypatch, silent.getsockname()[1])
        started = time.monotonic()
        message = refusal(SOURCE, "0" * 64)
    assert time.monotonic() - started < 40
    assert "the package registry is not reachable" in message
    assert f"no answer from http://****@{address} in 5 seconds" in message


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "the package registry is not reachable, or refuses"), (404, "Check the name: there is no version of it")],
)
def test_a_registry_that_refuses_is_told_from_one_without_the_package(
    status: int, said: str, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry(monkeypatch, status):
        assert said in refusal(SOURCE, "0" * 64)


def test_a_python_without_pip_says_how_to_get_it(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    python = next(path for path in (tmp_path / "bare").glob("*/python*") if path.stem == "python")
    monkeypatch.setattr(sys, "executable", str(python))
    message = refusal(SOURCE, "0" * 64)
    assert f"{python} has no pip" in message
    assert f"{python} -m ensurepip" in message
    assert "uv pip install pip" in message


def test_a_wheel_that_is_not_a_zip_file_says_so(wheelhouse: Path) -> None:
    wheel = make_wheel(wheelhouse)
    wheel.write_bytes(b"not a zip file" * 100)
    assert "is not a zip file" in refusal(SOURCE, sha256(wheel))
    assert kept_files() == []


def test_a_full_disk_names_the_cache_folder(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = sha256(make_wheel(wheelhouse))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sources.shutil, "copyfileobj", full)
        message = refusal(SOURCE, recorded)
    assert f"no room left in the cache folder {sources.cache_dir()}" in message
    assert "SLLM_TUNE_CACHE" in message
    assert get(SOURCE, recorded).read_bytes() == ROWS


def test_a_cache_that_is_a_file_is_reported(wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("SLLM_TUNE_CACHE", str(tmp_path / "taken"))
    assert f"cannot use the cache folder {tmp_path / 'taken'}" in refusal(SOURCE, "0" * 64)


def test_a_path_is_looked_up_from_the_base_folder(tmp_path: Path) -> None:
    rows = tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_bytes(ROWS)
    for source in ("data/rows.jsonl", str(rows)):
        assert sources.fetch(source, sha256=None, where=WHERE, base_dir=tmp_path) == rows
    assert sources.fetch("data", sha256=None, where=WHERE, base_dir=tmp_path) == tmp_path / "data"
    assert sources.fetch("data/rows.jsonl", sha256=sha256(rows), where=WHERE, base_dir=tmp_path) == rows


@pytest.mark.parametrize("source", ["pipe", "/dev/zero", "/dev/null", "link"])
@pytest.mark.parametrize("digest", [None, "0" * 64])
def test_what_is_no_file_is_never_waited_for(source: str, digest: str | None, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(SourceError, match="is no file but a pipe or a device, which cannot be read twice"):
        sources.fetch(source, sha256=digest, where=WHERE, base_dir=tmp_path)


@pytest.mark.parametrize("source", ["data/rows.jsonl", "", "~nobody-by-this-name/rows.jsonl", "a\0b", "x" * 5000])
def test_a_path_that_is_missing_says_what_was_tried(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        sources.fetch(source, sha256=None, where=WHERE, base_dir=tmp_path)
    assert f"{WHERE}: no file {source!r}; tried {tmp_path / source}" in str(caught.value)


def test_a_path_with_another_hash_names_both_hashes(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    with pytest.raises(SourceError) as caught:
        sources.fetch("rows.jsonl", sha256="0" * 64, where=WHERE, base_dir=tmp_path)
    assert f"expected {'0' * 64}" in str(caught.value)
    assert f"got      {hashlib.sha256(ROWS).hexdigest()}" in str(caught.value)
    with pytest.raises(SourceError, match=r"cannot read .* to check its sha256"):
        sources.fetch(".", sha256="0" * 64, where=WHERE, base_dir=tmp_path)
