"""What can become of an episode that was played.

trained: an update consumed its group. filtered: an update judged its group and left it out, or too few of the group
survived to compare. stale: sampled by weights too old for the update, or by some that were undone. failed: it has no
end, for environment, reward, engine or infrastructure broke. evaluation: played outside of training. late: its group
was over without it, or had it already. dead_letter: the buffer could not decode its group. pending: nothing of this was
known when it was written; in most runs, the groups that wait when the run ends.
"""

from __future__ import annotations

from typing import Literal

Fate = Literal["trained", "filtered", "stale", "failed", "evaluation", "late", "dead_letter", "pending"]
