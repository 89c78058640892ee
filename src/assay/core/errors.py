"""Every error that a user can meet.

    AssayError                 exit code 2
    ├── ConfigError            a configuration value breaks a rule
    │   └── StudyError         ... in a study file
    ├── CriterionError         a claim's criterion cannot be read
    ├── DataError              a data set is missing or not what it says
    ├── CheckpointError        a checkpoint does not fit
    ├── MetricError            a value that cannot be logged
    ├── StoreError             a file of a run cannot be read or written
    │   └── TamperedError      ... and its content no longer matches its digest; exit code 3
    ├── ProvenanceError        what ran cannot be established
    └── LaunchError            a child process could not be started

A message tells the rule, the value, where it stands, and the way out, in one paragraph.
Anything else that escapes is a mistake of ours and keeps its traceback.
"""


class AssayError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 2


class ConfigError(AssayError):
    """A configuration value breaks a rule."""


class StudyError(ConfigError):
    """A study file breaks a rule."""


class CriterionError(AssayError):
    """A claim's criterion cannot be read or names something that does not exist."""


class DataError(AssayError):
    """A data set is missing or is not what it says."""


class CheckpointError(AssayError):
    """A checkpoint does not fit the configuration, or is not a checkpoint."""


class MetricError(AssayError):
    """A name, step or value that cannot be logged."""


class StoreError(AssayError):
    """A file of a run cannot be read or written."""


class TamperedError(StoreError):
    """Content no longer matches the digest that was recorded for it."""

    exit_code = 3


class ProvenanceError(AssayError):
    """What is about to run cannot be established."""


class LaunchError(AssayError):
    """A child process could not be started."""
