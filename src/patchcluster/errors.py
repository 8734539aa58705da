"""Errors that a user can mend.

    PatchclusterError
    ├── InputError       the images or folders that were named
    │   └── UnreadableImage   one file; a scan skips it and lists the reason
    ├── SettingError     a value of an option or a parameter
    ├── WeightsError     the weights of a backbone
    ├── ClusterError     a Ray cluster or its workers
    └── RunError         a run folder

Every message is one line: what happened, why, and what to do next.
"""


class PatchclusterError(Exception):
    """Base class; the command line prints the message and exits with code 1."""


class InputError(PatchclusterError):
    """The named inputs cannot be used."""


class UnreadableImage(InputError):
    """One file cannot be read as an image; `str(error)` is the reason."""


class SettingError(PatchclusterError):
    """A setting has a value that cannot work."""


class WeightsError(PatchclusterError):
    """A backbone or its weights are missing or do not fit."""


class ClusterError(PatchclusterError):
    """A Ray cluster cannot be reached, or its workers cannot do the work."""


class RunError(PatchclusterError):
    """A run folder cannot be used."""
