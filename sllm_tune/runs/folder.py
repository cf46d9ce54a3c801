"""The run folder: one lock, one manifest a stage, and nothing half-written that looks finished.

A stage works in `.work/<stage>-<fingerprint>/`, so what an interrupted run left there can only be taken up by the same
stage with the same inputs. When it is done, `Run.commit` writes down what it will rename, removes the old manifest,
renames the outputs into place and writes the new manifest last: a kill at any moment leaves the old artefact with its
manifest, or a commit that the next run finishes.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, cast

from sllm_tune.errors import BadInput, RunFolderError
from sllm_tune.runs.files import fingerprint, sync, versions, write_json
from sllm_tune.runs.manifest import FileFound, Found, Manifest
from sllm_tune.runs.outputs import OWN_FOLDERS, deviation, read_manifest, read_pending, record_files

# Another version of these can give another adapter or other scores from the same inputs.
DECIDING = ("torch", "transformers", "trl", "peft", "lm-eval", "sllm-tune")
MARKER = ".sllm_tune.json"  # in a run folder, from its first moment: this is one, and of which recipe
PENDING = "pending.json"  # beside a manifest: a commit that is being made


@dataclass(frozen=True)
class Run:
    """A run folder that this process may write. Made by `open_run`."""

    dir: Path

    def manifest(self, stage: str) -> Found | None:
        """What `stage` recorded when it finished, or None.

        Raises:
            RunFolderError: the file is not what a stage records.
        """
        return read_manifest(self.dir / stage / "manifest.json", stage)

    def files(self, stage: str) -> dict[str, FileFound]:
        """What `stage` recorded of the files of its outputs; nothing of one that is not made."""
        manifest = self.manifest(stage)
        return {} if manifest is None else manifest.get("files", {})

    def intact(self, stage: str) -> str | None:
        """What is not as `stage` left it, such as an output that was edited; None where all is there and unchanged."""
        manifest = self.manifest(stage)
        return "not made yet" if manifest is None else deviation(self.dir, manifest)

    def why(self, stage: str, inputs: Mapping[str, object]) -> str | None:
        """The reason `stage` has to run, or None when its artefact is there and was made from the same inputs."""
        manifest = self.manifest(stage)
        if manifest is None:
            return "not made yet"
        if changed := deviation(self.dir, manifest):
            return changed
        before = manifest["inputs"]
        changed = [key for key in {**before, **inputs} if before.get(key) != inputs.get(key)]
        if not changed:
            return _other_versions(manifest)
        key = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        if key.startswith("file."):
            return f"{key.removeprefix('file.')} changed{more}"
        return f"{key} changed from {_short(before.get(key))} to {_short(inputs.get(key))}{more}"

    def work(self, stage: str, inputs: Mapping[str, object]) -> Path:
        """The folder where `stage` works on exactly these inputs; holds what an interrupted run left."""
        folder = self.work_folder(stage, inputs)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def work_folder(self, stage: str, inputs: Mapping[str, object]) -> Path:
        """Where `work` makes it."""
        return self.dir / ".work" / f"{stage}-{fingerprint(inputs)[:16]}"

    def commit(
        self,
        stage: str,
        inputs: Mapping[str, object],
        *,
        outputs: Mapping[str, Path],
        seed: int,
        record: Mapping[str, object],
    ) -> None:
        """Rename finished `outputs` (name in the run folder: where it lies now) into place, manifest last.

        What is going to be renamed is written down first, so that a kill in between costs nothing: `open_run` goes on.
        `record` is what else the manifest says: what it cost, and what the stage adds.
        """
        made = {
            "stage": stage,
            "fingerprint": fingerprint(inputs),
            "inputs": dict(inputs),
            "outputs": list(outputs),
            "files": record_files(outputs),
            "versions": versions(),
            "seed": seed,
            **record,
            "finished_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        manifest = Manifest.model_validate(made).as_json()
        moves = {name: str(path.relative_to(self.dir)) for name, path in outputs.items()}
        replaced: list[str] = []
        for before in filter(None, map(self.manifest, OWN_FOLDERS[1:])):  # an earlier version may have had another
            replaced += [name for name in before["outputs"] if name in outputs or before["stage"] == stage]
        write_json(self.dir / stage / PENDING, {"moves": moves, "replaced": replaced, "manifest": manifest})
        self.finish_commit(stage)

    def finish_commit(self, stage: str) -> None:
        """Make the renames of a commit that are not made yet, and write its manifest; nothing where none is pending.

        What lies at an output's place and is not what the stage made there before is the user's: it is kept under
        another name, and said.

        Raises:
            RunFolderError: the list of renames is damaged, or not one that a commit writes.
        """
        pending = self.dir / stage / PENDING
        commit = read_pending(pending, self.dir, stage)
        if commit is None:
            return
        moves, replaced, record = commit
        manifest = self.dir / stage / "manifest.json"
        manifest.unlink(missing_ok=True)
        for name, source in moves.items():
            path, target = self.dir / source, self.dir / name
            if path.exists():  # else it was renamed before
                target.parent.mkdir(parents=True, exist_ok=True)
                if name not in replaced and os.path.lexists(target):
                    _set_aside(target)
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                elif target.is_symlink():
                    target.unlink()
                os.replace(path, target)
                sync(target.parent)
        write_json(manifest, record)
        pending.unlink()
        for folder in (self.dir / ".work").glob(f"{stage}-*"):
            shutil.rmtree(folder)


@contextlib.contextmanager
def open_run(folder: Path, recipe: str | None = None) -> Generator[Run]:
    """Make `folder` readable by its owner only, and hold its lock; the kernel drops the lock with the process.

    A folder that this makes, and in which the work is then refused as bad input, is removed again.

    Args:
        folder: Absent, empty, or a run folder already.
        recipe: The name of the recipe that it is for.

    Raises:
        BadInput: `folder` holds other things or another recipe's run, or cannot be written.
        RunFolderError: another process holds the lock (named by its id), or what a run left there is damaged.
    """
    try:
        is_new = _require_ours(folder, recipe)
        absent = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        # O_NOFOLLOW: a link of that name would have the file that it leads to emptied.
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}).\n  Name another with --run-dir.") from error
    with os.fdopen(handle, "r+", encoding="utf-8", errors="replace") as lock:
        _hold(lock, folder)
        try:
            if not (folder / MARKER).exists():
                write_json(folder / MARKER, {"recipe": recipe})
            run = Run(folder)
            for stage in OWN_FOLDERS[1:]:
                run.finish_commit(stage)
            yield run
        except (BadInput, RunFolderError):
            if is_new and not any((folder / stage).exists() for stage in OWN_FOLDERS[1:]):
                _remove_new(folder, absent)
            raise


def _require_ours(folder: Path, recipe: str | None) -> bool:
    """True for a folder with nothing in it yet; refuses one that holds anything but a run of this recipe."""
    inside = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    if not {name for name in inside if name != ".lock" and not name.startswith(f".{MARKER}.")}:  # killed at once
        return True
    linked = [name for name in (*OWN_FOLDERS, MARKER) if (folder / name).is_symlink()]
    if linked:
        raise BadInput(f"{folder / linked[0]}: a link.\n  Put what it leads to in its place.")
    name = _recipe_of(folder)
    if name is None:
        raise BadInput(
            f"{folder}: holds other files ({min(inside)}) and is not a run folder: a run would replace some of them.\n"
            "  Name a folder that is empty or not there yet with --run-dir."
        )
    if recipe is not None and name not in (recipe, ""):
        raise BadInput(
            f"{folder}: the run folder of another recipe, {name!r}; this one is {recipe!r}.\n"
            "  Name another with --run-dir."
        )
    return False


def _recipe_of(folder: Path) -> str | None:
    """The name of the recipe whose run `folder` holds, "" for one without a name; None where it is not a run folder."""
    for file, keys in ((MARKER, {"recipe"}), ("recipe.json", {"name", "base_model", "data", "train", "evaluate"})):
        try:
            found = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and keys <= set(cast(dict[str, object], found)):
            name = cast(dict[str, object], found).get("recipe" if file == MARKER else "name")
            return name if isinstance(name, str) else ""
    return None


def _hold(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunFolderError(
            f"{folder}: in use by process {lock.read(20).strip() or 'unknown'}.\n"
            "  Wait until it is done, or name another run folder with --run-dir."
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def _remove_new(folder: Path, absent: list[Path]) -> None:
    """Take back what `open_run` and a refused stage made in a folder that was empty, and the folders it lies in."""
    shutil.rmtree(folder / ".work", ignore_errors=True)
    for name in (MARKER, ".lock"):
        (folder / name).unlink(missing_ok=True)
    for place in absent:
        with contextlib.suppress(OSError):  # somebody else uses it by now
            place.rmdir()


def _set_aside(path: Path) -> None:
    number = next(n for n in itertools.count(1) if not os.path.lexists(path.with_name(f"{path.name}.before-{n}")))
    kept = path.with_name(f"{path.name}.before-{number}")
    os.rename(path, kept)
    print(f"{path}: no stage of this run made what was there; it is kept as {kept.name}.", file=sys.stderr)


def _other_versions(manifest: Found) -> str | None:
    """By which other versions of our code and the libraries that decide a result a stage was made; None for these."""
    made, here = manifest.get("versions") or {}, versions()
    others = [name for name in DECIDING if made.get(name) != here.get(name)]
    if not others:
        return None
    listed = ", ".join(f"{name} {made.get(name, 'of an unknown version')}" for name in others)
    return f"made with {listed}; here is {', '.join(here.get(name, 'none') for name in others)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
