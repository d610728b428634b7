"""A few groups in one HTML file that needs nothing else: no server, no network, no script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog.runs import removed_unless_done
from milepost.cluster.viewer.contents import EpisodeShown, GroupShown, episode_shown, group_shown
from milepost.cluster.viewer.links import InOneFile, View
from milepost.cluster.viewer.pages import page, style
from milepost.cluster.viewer.sources import Source

_GROUPS: Final = 3


@dataclass(frozen=True, slots=True)
class _Exported:
    shown: GroupShown
    episodes: list[EpisodeShown]


def export(source: Source, path: Path, group_ids: Sequence[str]) -> list[str]:
    """Write groups into a file, whole or not at all; the ids of those that were written.

    Args:
        group_ids: none for the three of the newest update whose returns differ most.

    Raises:
        ConfigError: a group is not there, or a file cannot be read or written.
    """
    chosen = list(group_ids) or source.recorded.widest_groups(_GROUPS)
    if not chosen:
        raise ConfigError(f"run {source.key} has recorded no group that came to an end; name what to export by --group")
    groups = [_exported(source, group_id) for group_id in chosen]
    text = page("export.html", source=source, groups=groups, view=View(), links=InOneFile(), style=Markup(style()))
    scratch = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        with removed_unless_done(scratch):
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give another place by --export FILE") from error
    return chosen


def _exported(source: Source, group_id: str) -> _Exported:
    view = View()
    rows = source.recorded.group(group_id)
    return _Exported(
        group_shown(source, rows, view.strategy), [episode_shown(source, row["episode"], view) for row in rows]
    )
