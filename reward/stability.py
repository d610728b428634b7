"""Two shapes of a reasoning path: does it keep its direction, and does it go straight. A diagnostic for users.

Inputs are embeddings of an episode's steps from any frozen embedder of the user's own; nothing in the house makes them
or calls this. Never a reward: straight is not right, and paraphrase games it. The idea is StaRPO's (arXiv 2604.08905,
"stability"); formulas are ours, because its equations and weights are not public. It is not the StarPO of RAGEN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def local_coherence(embeddings: Floats) -> float | None:
    """Mean cosine of the angle between consecutive moves `d_k = e_{k+1} - e_k`, in [-1, 1].

    1 keeps its direction, -1 goes back and forth. A move of length 0 has no direction: pairs with one are left out.

    Args:
        embeddings: `[n, dim]`, one row per step.

    Returns:
        None where no two consecutive moves have a direction (fewer than 3 steps, or a standstill).

    Raises:
        ValueError: not a matrix of finite numbers.
    """
    moves = _moves(embeddings)
    lengths = np.linalg.norm(moves, axis=1)
    has_pair = (lengths[:-1] > 0) & (lengths[1:] > 0)
    if not np.any(has_pair):
        return None
    directions = moves / np.where(lengths > 0, lengths, 1.0)[:, None]
    cosines = np.sum(directions[:-1] * directions[1:], axis=1)[has_pair]
    return float(np.clip(np.mean(cosines), -1.0, 1.0))


def path_efficiency(embeddings: Floats) -> float | None:
    """`||e_n - e_1|| / sum_k ||d_k||`, in [0, 1]: the straight way over the way that was gone.

    Args:
        embeddings: `[n, dim]`, one row per step.

    Returns:
        None where nothing moved (a single step, or a standstill).

    Raises:
        ValueError: not a matrix of finite numbers.
    """
    moves = _moves(embeddings)
    gone = float(np.sum(np.linalg.norm(moves, axis=1)))
    if gone == 0:
        return None
    return min(1.0, float(np.linalg.norm(embeddings[-1] - embeddings[0])) / gone)


def _moves(embeddings: Floats) -> Floats:
    """`[n - 1, dim]`."""
    if embeddings.ndim != 2 or len(embeddings) == 0 or not np.all(np.isfinite(embeddings)):
        raise ValueError(f"embeddings of shape {embeddings.shape}: pass one row of finite numbers per step")
    return np.diff(embeddings, axis=0)
