"""The errors that metaalign raises on purpose, and the suggestion for an unknown name.

Each class also inherits from a standard exception. None takes extra constructor arguments, since
Ray pickles exceptions between processes.

    MetaAlignError
    ├── ConfigError (ValueError)         a setting, or settings that disagree
    ├── DataError (ValueError)           a file, a glob or a token store that cannot be used
    │   └── RowError                     one source row; it is quarantined, the job continues
    ├── TemplateError (ValueError)       a tokenizer that the template cannot use
    ├── ModelError (ValueError)          a model that cannot be loaded or trained as configured
    │   └── LayoutError                  its attention is not exact with the layout setting
    ├── PlanError (ValueError)           examples that cannot be laid out in steps
    ├── TrainingError (RuntimeError)     a run that must stop: a loss that is not finite
    ├── CheckpointError (RuntimeError)   a checkpoint that is missing, incomplete or of another run
    ├── StorageError (OSError)           storage that cannot be written, or object storage not read
    ├── TrackingError (RuntimeError)     the tracking server fails at the start of a run
    ├── UpstreamError (RuntimeError)     a model on another server that cannot be used (any more)
    └── RequestError (ValueError)        an HTTP request that cannot be answered
"""

import difflib
from collections.abc import Sequence


class MetaAlignError(Exception):
    """Catch this for anything that metaalign raises on purpose."""

    on_every_worker = False
    """Whether every worker of a training job raises it, so that none is left to wait for another.
    `train.engines.agreement` sets it."""


class ConfigError(MetaAlignError, ValueError):
    """A setting that is unknown, mistyped, out of bounds, or in conflict with another."""


class DataError(MetaAlignError, ValueError):
    """Data that cannot be read, or too much of it that is bad."""


class RowError(DataError):
    """One source row that cannot become an example. It is quarantined with this message."""


class TemplateError(MetaAlignError, ValueError):
    """A tokenizer that the template cannot use, or a template other than the expected one."""


class ModelError(MetaAlignError, ValueError):
    """A model that cannot be loaded or trained as configured."""


class LayoutError(ModelError):
    """A model whose attention is not exact with the requested layout."""


class PlanError(MetaAlignError, ValueError):
    """Examples that do not fit in steps under the given budget."""


class TrainingError(MetaAlignError, RuntimeError):
    """A training run that must stop."""


class CheckpointError(MetaAlignError, RuntimeError):
    """A checkpoint that is missing, incomplete or belongs to another run."""


class TrackingError(MetaAlignError, RuntimeError):
    """The tracking store could not be reached when the run was opened."""


class RequestError(MetaAlignError, ValueError):
    """An HTTP request that cannot be answered."""


class StorageError(MetaAlignError, OSError):
    """Storage that cannot be written, or object storage that cannot be reached."""


class UpstreamError(MetaAlignError, RuntimeError):
    """A model on another server that cannot be used, or no longer."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of an error message on an unknown name, such as ` (did you mean learning_rate?)` for
    `learning_rat` or `lr`. Empty if no known name is similar.

    Args:
        name: As given, including its sections: `optimizer.lr`.
        known: The known names, including their sections. Initials, such as `lr`, match only within
            the same section.
    """
    close = difflib.get_close_matches(name, known, n=1)
    near = [each for each in known if _initials(each) == name] or close
    return f" (did you mean {near[0]}?)" if near else ""


def _initials(name: str) -> str:
    """`optimizer.lr` for `optimizer.learning_rate`."""
    section, dot, own = name.rpartition(".")
    return section + dot + "".join(word[:1] for word in own.split("_"))
