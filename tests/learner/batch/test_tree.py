"""A prefix tree holds every row, every beginning once, and its branches name who sees whom."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.batch.tree import distinct_tokens, prefix_tree

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8)


@given(ROWS)
def test_every_row_is_a_path_and_every_beginning_is_there_once(lists: list[list[int]]):
    rows = [np.array(row) for row in lists]
    tree = prefix_tree(rows)
    beginnings = {tuple(row[: n + 1]) for row in lists for n in range(len(row))}
    assert len(tree.token_ids) == distinct_tokens(rows) == len(beginnings)
    for row, nodes in zip(lists, tree.nodes, strict=True):
        path = nodes[: len(row)]
        assert tree.token_ids[path].tolist() == row
        assert tree.positions[path].tolist() == list(range(len(row)))
        assert tree.parents[path].tolist() == [-1, *path[:-1].tolist()]


@given(ROWS)
def test_branches_say_which_tokens_descend_from_which(lists: list[list[int]]):
    tree = prefix_tree([np.array(row) for row in lists])
    count = len(tree.token_ids)
    above = torch.zeros(count, count, dtype=torch.bool)
    for node in range(count):
        ancestor = node
        while ancestor >= 0:
            above[node, ancestor] = True
            ancestor = int(tree.parents[ancestor])
    told = torch.zeros_like(above)
    for start, stop, end in tree.branches:
        told[start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        told[stop:end, start:stop] = True
    assert torch.equal(told, above)
    forks = sum(int(children) > 1 for children in torch.bincount(tree.parents + 1))
    assert len(tree.branches) <= len(lists) + forks, "a stretch without a fork is one branch"


def test_a_row_that_goes_on_where_another_ends_is_no_fork():
    tree = prefix_tree([np.array([4, 5]), np.array([4, 5, 6]), np.array([4, 5])])
    assert tree.branches == ((0, 3, 3),)
    assert tree.nodes.tolist() == [[0, 1, 0], [0, 1, 2], [0, 1, 0]]
