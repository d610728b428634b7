"""The door to packages that adapters stand on, and that a run without them does not need.

They are imported when an environment is made, so that a module of ours can be named without them.
"""

from __future__ import annotations

import importlib
from typing import Any


def foreign(module: str, install: str) -> Any:
    """The module named `module` of another package.

    Raises ImportError with one line that ends with `install`, what to do, where it or something that it imports is
    missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{module} needs {error.name}, which is not installed: {install}") from error
