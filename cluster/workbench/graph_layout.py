"""Where the states of a transition graph stand in a picture, and by which short names.

Layers from left to right by the fewest actions from the start, as in Sugiyama et al. 1981; within a layer the order
that puts states near their neighbours. Made for a few hundred states; crossings are few, not fewest.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from milepost.learner.credit.assignment import Floats

LAYER_PX = 156.0
ROW_PX = 124.0
_SWEEPS = 16
_SHORTEST_PREFIX = 4


def layered(num_nodes: int, edges: Sequence[tuple[int, int]], *, starts: Sequence[int], ends: Sequence[int]) -> Floats:
    """`[num_nodes, 2]` positions in pixels, no two the same; the start's layer has x = 0.

    Args:
        edges: (source, target) rows; loops and repetitions are fine.
        starts: rows of the first layer.
        ends: rows that are put into a last layer of their own, wherever they are reached from.
    """
    layer_of = _distances(num_nodes, edges, starts)
    last = max((layer_of[n] for n in range(num_nodes) if n not in ends), default=-1) + 1
    for node in ends:
        layer_of[node] = last
    layers = [[n for n in range(num_nodes) if layer_of[n] == layer] for layer in range(last + 1)]
    neighbours: list[list[int]] = [[] for _ in range(num_nodes)]
    for a, b in edges:
        if layer_of[a] != layer_of[b]:
            neighbours[a].append(b)
            neighbours[b].append(a)
    rows = np.zeros(num_nodes)
    for layer in layers:
        rows[layer] = np.arange(len(layer)) - (len(layer) - 1) / 2
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            _arrange(layer, neighbours, rows)
    return np.column_stack([np.array(layer_of, dtype=np.float64) * LAYER_PX, rows * ROW_PX])


def _distances(num_nodes: int, edges: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """Fewest edges from a start; 0 for what can't be reached."""
    targets: list[set[int]] = [set() for _ in range(num_nodes)]
    for a, b in edges:
        targets[a].add(b)
    distance = dict.fromkeys(starts, 0)
    frontier = deque(starts)
    while frontier:
        node = frontier.popleft()
        for target in sorted(targets[node] - distance.keys()):
            distance[target] = distance[node] + 1
            frontier.append(target)
    return [distance.get(node, 0) for node in range(num_nodes)]


def _arrange(layer: list[int], neighbours: list[list[int]], rows: Floats) -> None:
    """Move the nodes of one layer as near to their neighbours as a distance of 1 between them allows."""
    wanted = {n: float(np.mean(rows[neighbours[n]])) if neighbours[n] else float(rows[n]) for n in layer}
    layer.sort(key=lambda n: (wanted[n], n))
    slots = np.arange(len(layer), dtype=np.float64)
    rows[layer] = isotonic_regression(np.array([wanted[n] for n in layer]) - slots).x + slots


def short_labels(texts: Sequence[str], *, width: int) -> list[str]:
    """A different label of about `width` characters for each text, without what all begin with.

    The middle of a long one is left out; line ends and other characters that can't be printed become spaces.
    """
    prefix = _common_start(min(texts), max(texts)) if len(set(texts)) > 1 else ""
    while prefix and prefix[-1].isalnum():  # a number or a word stays whole
        prefix = prefix[:-1]
    cut = len(prefix) if len(prefix) >= _SHORTEST_PREFIX and all(len(text) > len(prefix) for text in texts) else 0
    seen: Counter[str] = Counter()
    labels = []
    for text in texts:
        label = shortened(text[cut:], width=width)
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label}·{seen[label]}")
    return labels


def shortened(text: str, *, width: int) -> str:
    """`text` on one line of at most `width` characters, an ellipsis in place of its middle."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= width:
        return line
    head = (width - 1) * 2 // 3
    return f"{line[:head].rstrip()}…{line[len(line) - (width - 1 - head) :].lstrip()}"


def _common_start(a: str, b: str) -> str:
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]
