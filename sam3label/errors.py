"""Everything that can go wrong and that a user can act on.

    Sam3LabelError              exit 1: one message, the next step, no traceback unless --debug
      ConfigError               concept list, --set, split or threshold syntax
      InputError                photos, label files, truth files: what the user points at
      CheckpointError           weights: not reachable, not SAM 3, incomplete
        NotDownloadedError      weights: on the hub, and not here
      StoreError                the run folder: locked, read-only, full, made with other settings
      OutputError               a dataset or report that cannot be written
      ServerError               a verifier's server: not reachable, refuses the key, does not know the model
      TuningStoppedError        a fine-tuning that went wrong: its last good state is kept
    ExtraMissingError         an optional extra is not installed
    UndecodableError            one file that cannot be read: recorded as `failed(reason)`, never ends a run

Library code raises these and never prints or exits; `cli` is the one error boundary.
"""

from __future__ import annotations


class Sam3LabelError(Exception):
    """A clear error about input, config, checkpoint or output. `str(error)` is the whole message for the user."""


class ConfigError(Sam3LabelError):
    """A concept list or a setting is wrong. The message lists every problem at once."""


class InputError(Sam3LabelError):
    """Something the user points at is missing, unreadable or contradictory."""


class CheckpointError(Sam3LabelError):
    """The model's weights cannot be had, or are not what they should be."""


class NotDownloadedError(CheckpointError):
    """The hub would have to send the weights of `repo`, and none were to be downloaded."""

    def __init__(self, repo: str, revision: str | None) -> None:
        super().__init__(f"the weights of {repo} are not on this machine.")
        self.repo, self.revision = repo, revision


class StoreError(Sam3LabelError):
    """The run folder cannot be opened, continued or written."""


class OutputError(Sam3LabelError):
    """A result cannot be written."""


class ServerError(Sam3LabelError):
    """A verifier's server cannot be used. Verdicts that were had are kept; the same command asks for the rest."""


class TuningStoppedError(Sam3LabelError):
    """A fine-tuning went wrong: what it had before is kept."""


class ExtraMissingError(Sam3LabelError):
    """An optional extra is needed. The message carries the pip command."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an optional extra: pip install 'sam3label[{extra}]'")


class UndecodableError(Exception):
    """One media file cannot be decoded; `str(error)` is the reason, fit for a list of failures.

    It is `lasting` where the reason is what is in the file: then there is no use in trying it again as it is.
    """

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


def os_reason(error: OSError) -> str:
    """Return the system's reason in words: "no space left on device"."""
    return (error.strerror or type(error).__name__).lower()
