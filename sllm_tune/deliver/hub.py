"""The hub as it answers: a base that is looked up there, and errors that say what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from sllm_tune.errors import BadInput, JobFailed
from sllm_tune.runs.files import fingerprint, sha256
from sllm_tune.wording import without_secrets

_READ = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class HubBase:
    """A base model's repository."""

    id: str
    revision: str | None
    licence: str | None
    content_sha256: frozenset[str]
    """As `model.lineage.base_sha256` takes it: of all of its weights, and of those alone that transformers reads."""


def find_hub_base(id: str, revision: str | None) -> HubBase:
    """What the hub of HF_ENDPOINT says of a model; weights that it names by their hash are not downloaded.

    Raises:
        BadInput: the hub has no such model, or does not show it with this token.
        JobFailed: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with talking(f"the base {id}"):
        info = HfApi().model_info(id, revision=revision, files_metadata=True)
        hashes: dict[str, str] = {}
        for file in info.siblings or []:
            if "/" in file.rfilename or not (
                file.rfilename == "config.json" or file.rfilename.endswith(".safetensors")
            ):
                continue
            stored = file.lfs.sha256 if file.lfs else None
            hashes[file.rfilename] = stored or sha256(Path(hf_hub_download(id, file.rfilename, revision=info.sha)))
    licence = info.card_data.get("license") if info.card_data else None
    named = info.card_data.get("license_name") if info.card_data else None
    shown = named if licence == "other" and named else licence
    read = {name: found for name, found in hashes.items() if name == "config.json" or _READ.fullmatch(name)}
    content = frozenset(fingerprint(found) for found in (hashes, read))
    return HubBase(id, revision, shown if isinstance(shown, str) else None, content)


def require_valid_card(card: str) -> None:
    """Has the hub look at a card's metadata before anything is made there.

    Raises:
        BadInput: it refuses them.
        JobFailed: it cannot be reached.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    with talking("README.md"):
        try:
            ModelCard(card).validate()
        except HfHubHTTPError:  # of a hub that answers nobody without a token; it is asked again with the files
            return
        except ValueError as error:
            raise BadInput(f"README.md: the hub refuses its metadata ({_said(error)}).") from error


@contextlib.contextmanager
def talking(about: str, resumes: str = "") -> Generator[None]:
    """Turns what the client raises in the block into an error of ours; `about` begins the message.

    Args:
        about: What is read or written.
        resumes: What becomes of a job that is cut short.

    Raises:
        BadInput: the hub refuses the name, the token, or what was sent.
        JobFailed: it cannot be reached, or went away.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except (BadInput, JobFailed):
        raise
    except HFValidationError as error:
        raise BadInput(f"{about}: {_said(error)}\n  Name it owner/name, as the hub does.") from error
    except OfflineModeIsEnabled as error:
        raise JobFailed(f"{about}: the hub is switched off by HF_HUB_OFFLINE.\n  Unset it and try again.") from error
    except Exception as error:  # whatever the client, its transport and its parser raise
        status = _status(error)
        if isinstance(error, GatedRepoError):
            raise BadInput(f"{about}: accept its terms on the hub first ({_said(error)}).") from error
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            raise BadInput(f"{about}: the hub has none of that name, or hides it from this token.") from error
        if status in (401, 403):
            raise BadInput(
                f"{about}: the hub does not let this token do that ({status}: {_said(error)}).\n"
                "  Take a token with the right to write there (HF_TOKEN, or hf auth login), or name another repository."
            ) from error
        if status == 429 or status is None or status >= 500:
            raise JobFailed(
                f"{about}: the hub did not answer to the end ({_said(error)}).\n  Run the same command again.{resumes}"
            ) from error
        raise BadInput(f"{about}: the hub refuses it ({status}: {_said(error)}).") from error


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error, or one that it was raised for, came of."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        seen = seen.__cause__
    return None


def _said(error: BaseException) -> str:
    """The answer's own words where it has some, else the client's, on one line and without tokens."""
    text = getattr(error, "server_message", None) or str(error)
    return without_secrets(" ".join(text.split()))[:300].rstrip(".") or type(error).__name__
