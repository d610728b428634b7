"""From `package.module:name` to the object: how a configuration names a user's own code.

Importing runs that code: a path is trusted like the configuration it stands in.
"""

from __future__ import annotations

import importlib
import re

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class DottedPathError(ValueError):
    """A dotted path names nothing that can be imported."""


def resolve(path: str) -> object:
    """The object at `package.module:name`.

    Raises `DottedPathError`: malformed path, no such module, an import that fails, no such name in the module.
    """
    if not _PATH.fullmatch(path):
        raise DottedPathError(f"{path!r} is not of the form package.module:Name")
    module_name, name = path.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise DottedPathError(
            f"{path!r}: no module named {error.name!r}; install it, or start from the folder that holds it"
        ) from error
    except (Exception, SystemExit, GeneratorExit) as error:  # importing runs a user's module: it may raise anything
        raise DottedPathError(f"{path!r}: importing {module_name} raised {type(error).__name__}: {error}") from error
    if name not in vars(module):
        raise DottedPathError(f"{path!r}: module {module_name} has no {name!r}")
    found: object = vars(module)[name]
    return found
