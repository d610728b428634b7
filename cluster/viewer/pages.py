"""Pages as HTML. Whatever is put into one is escaped, and characters that cannot be seen are written out.

There is no script in any of them: what can be chosen are links and forms, whose state is the address.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import jinja2

from milepost.cluster.viewer.contents import why
from milepost.cluster.viewer.credits import STORED, STRATEGIES
from milepost.cluster.viewer.curves import number
from milepost.cluster.viewer.graph import strength
from milepost.cluster.viewer.messages import visible

_FOLDER: Final = Path(__file__).parent / "pages"
_MARKS: Final = {"success": "✓", "failure": "✕", "truncated": "…", None: "!"}


def _finalized(value: object) -> object:
    """Every text that a page puts in; markup of our own templates passes."""
    return visible(value) if type(value) is str else value


_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_finalized,
)
_TEMPLATES.filters.update(number=number, strength=strength, why=why)
_TEMPLATES.globals.update(marks=_MARKS, stored=STORED, strategies=STRATEGIES)


def page(template: str, **contents: Any) -> str:
    """The page that a template makes of its contents."""
    return _TEMPLATES.get_template(template).render(contents)


def style() -> str:
    """The style sheet of all pages."""
    return (_FOLDER / "viewer.css").read_text(encoding="utf-8")
