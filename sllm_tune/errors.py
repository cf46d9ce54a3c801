"""The exception tree. `exit_status` is what the command line returns for it."""


class SllmTuneError(Exception):
    """A failure with a message for the user: what is wrong, where, and how to fix it."""

    exit_status = 1


class JobFailed(SllmTuneError):
    """A job that began and could not be finished."""


class BadInput(SllmTuneError, ValueError):
    """Refused before work starts; nothing that was made is touched."""

    exit_status = 2


class RecipeError(BadInput):
    """A recipe, an override or a library's option in it is wrong."""


class SourceError(BadInput):
    """Bytes that a recipe or task names are not available, or are not what was recorded."""


class TaskError(BadInput):
    """A task file is missing or wrong, or a row does not fit it."""


class DataError(BadInput):
    """The rows are readable but cannot make the splits or examples that were asked for."""


class ModelError(BadInput):
    """A base model, tokenizer or chat template cannot be used."""


class RunFolderError(JobFailed):
    """The run folder is in use, or holds what a run did not write."""
