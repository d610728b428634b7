"""Why the program ends, and the exit code that says so. Every message is one line: what, where, what to do."""

from __future__ import annotations

import errno

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Full, over its quota, not writable any more, broken."""
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class Exit(Exception):
    """Ends the program with `code`; the message is what the user reads."""

    code = 1


class ConfigError(Exit):
    """The user's configuration or files cannot work as they are."""

    code = 2


class Stopped(Exit):
    """A signal asked for an orderly stop; a checkpoint was written."""

    code = 3


class DependencyLost(Exit):
    """Redis, Ray, an engine, the learner or the disk is gone and could not be brought back."""

    code = 4


class WatchdogExpired(Exit):
    """A wait passed its deadline; the message names what it waited for."""

    code = 5


class Diverged(Exit):
    """Training left the region where its numbers mean anything."""

    code = 6


class NothingLearnt(Exit):
    """All iterations are done and saved, and none of them made an update of the policy."""

    code = 7


class GateRefused(Exit):
    """A policy did not meet the limits of a gate, and the champion stays."""

    code = 8


def exit_of(error: BaseException, *, folder: object) -> Exit | None:
    """What an error of the file system means for the program, in one line; None for every other error.

    `folder` is where the program writes: an error of a file that was open does not name it.
    """
    if not isinstance(error, OSError):
        return None
    what = error.filename or f"a file in {folder}"
    if error.errno in _DISK:
        return DependencyLost(f"{what} could not be written: {error.strerror}; make room on that disk and start again")
    if error.errno in _NOT_ALLOWED:
        return ConfigError(f"{what}: {error.strerror}; give a path that this user may read and write")
    return None
