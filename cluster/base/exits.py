"""Why the program ends, and the exit code that says so. Every message is one line: what, where, what to do."""

from __future__ import annotations


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
    """Redis, Ray, an engine or the learner is gone and could not be brought back."""

    code = 4


class WatchdogExpired(Exit):
    """A wait passed its deadline; the message names what it waited for."""

    code = 5


class Diverged(Exit):
    """Training left the region where its numbers mean anything."""

    code = 6
