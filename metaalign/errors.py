"""Every error that metaalign raises on purpose, and what one suggests for an unknown name.

Each class is also the standard exception that it specialises. None takes extra constructor
arguments: Ray pickles exceptions between processes.

    MetaAlignError
    ├── ConfigError (ValueError)         a setting, or settings that disagree
    ├── DataError (ValueError)           a file, a glob or a token store that cannot be used
    │   └── RowError                     one source row; it is quarantined, the job goes on
    ├── TemplateError (ValueError)       a tokenizer that cannot carry the template
    ├── ModelError (ValueError)          a model that cannot be loaded, trained or fed as asked
    │   └── LayoutError                  its attention cannot be fed as asked
    ├── PlanError (ValueError)           examples that cannot be laid out in steps
    ├── TrainingError (RuntimeError)     a run that must stop: a loss that is not finite
    ├── CheckpointError (RuntimeError)   a checkpoint that is missing, incomplete or of another run
    ├── StorageError (OSError)           the storage cannot be written, or object storage not read
    ├── TrackingError (RuntimeError)     the tracking server, at the start of a run
    ├── UpstreamError (RuntimeError)     a model elsewhere that cannot be asked (any more)
    └── RequestError (ValueError)        an HTTP request that cannot be answered as it stands
"""

import difflib
from collections.abc import Sequence


class MetaAlignError(Exception):
    """Catch this for anything that metaalign raises on purpose."""

    on_every_worker = False
    """Whether every worker of a training job raises it, so that none is left to wait for another.
    `train.engines.agreement` sets it."""


class ConfigError(MetaAlignError, ValueError):
    """A setting that is unknown, mistyped, out of bounds, or at odds with another."""


class DataError(MetaAlignError, ValueError):
    """Data that cannot be read, or too much of it that is bad."""


class RowError(DataError):
    """One source row that cannot become an example. It is quarantined with this message."""


class TemplateError(MetaAlignError, ValueError):
    """A tokenizer that cannot carry the template, or a template other than the one expected."""


class ModelError(MetaAlignError, ValueError):
    """A model that cannot be loaded, trained or fed as asked."""


class LayoutError(ModelError):
    """An architecture whose attention cannot be fed as the layout setting asks."""


class PlanError(MetaAlignError, ValueError):
    """Examples that cannot be laid out in steps under the given budget."""


class TrainingError(MetaAlignError, RuntimeError):
    """A training run that must stop."""


class CheckpointError(MetaAlignError, RuntimeError):
    """A checkpoint that is missing, incomplete or belongs to another run."""


class TrackingError(MetaAlignError, RuntimeError):
    """The tracking store could not be reached when the run was opened."""


class RequestError(MetaAlignError, ValueError):
    """An HTTP request that cannot be answered as it stands."""


class StorageError(MetaAlignError, OSError):
    """The storage cannot take what is written, or object storage cannot be asked."""


class UpstreamError(MetaAlignError, RuntimeError):
    """A model on another server that cannot be asked, or not any more."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """What an error on an unknown name ends with: ` (did you mean learning_rate?)` for
    `learning_rat` and for `lr`, nothing where no known name is near.

    Args:
        name: As it was given, with the sections around it: `optimizer.lr`.
        known: Alike with their sections. A name is only abbreviated in its own section.
    """
    close = difflib.get_close_matches(name, known, n=1)
    near = [each for each in known if _initials(each) == name] or close
    return f" (did you mean {near[0]}?)" if near else ""


def _initials(name: str) -> str:
    """`optimizer.lr` of `optimizer.learning_rate`."""
    section, dot, own = name.rpartition(".")
    return section + dot + "".join(word[:1] for word in own.split("_"))
