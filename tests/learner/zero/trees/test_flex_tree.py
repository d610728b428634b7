"""Flex attention over a prefix tree: each token sees its ancestors and itself, and blocks leave none of them out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from milepost.learner.batch.tree import PrefixTree, prefix_tree
from milepost.learner.zero.flex_tree import tree_block_mask
from milepost.learner.zero.tree_attention import tree_attention
from tests.learner.closeness import differ

CPU = torch.device("cpu")


def random_tree(seed: int) -> tuple[PrefixTree, Tensor]:
    """Rows of up to 600 tokens that fork up to twice, and who sees whom among their distinct tokens."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, 9, 300) for _ in range(2)]
    rows = [
        np.concatenate([prompts[draw.integers(2)][: draw.integers(1, 300)], draw.integers(0, 9, draw.integers(1, 300))])
        for _ in range(draw.integers(1, 7))
    ]
    tree = prefix_tree(rows)
    seen = torch.zeros(2 * (len(tree.token_ids),), dtype=torch.bool)
    for row, nodes in zip(rows, tree.nodes, strict=True):
        for last in range(len(row)):
            seen[nodes[last], nodes[: last + 1]] = True
    return tree, seen


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@given(st.integers(0, 999))
@settings(max_examples=8)
def test_flex_attention_over_a_tree_is_that_of_a_mask_of_ancestors(seed: int) -> None:
    tree, seen = random_tree(seed)
    query, key, value = (torch.randn(1, len(seen), heads, 8).transpose(1, 2) for heads in (4, 2, 2))
    options = {"prefix_branches": tree.branches, "prefix_mask": tree_block_mask(tree.branches, CPU), "scaling": 0.4}
    ours, _ = tree_attention(torch.nn.Module(), query, key, value, None, **options)
    theirs = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.4, enable_gqa=True)
    assert differ([ours.transpose(1, 2)], [theirs]) < 1e-5


@given(st.integers(0, 999))
@settings(max_examples=30)
def test_blocks_hold_all_that_is_seen_and_those_said_to_be_full_are(seed: int) -> None:
    tree, seen = random_tree(seed)
    mask = tree_block_mask(tree.branches, CPU)
    whole = mask.kv_indices.shape[-1]
    blocks = torch.zeros(whole, 128, whole, 128, dtype=torch.bool)
    blocks.view(whole * 128, whole * 128)[: len(seen), : len(seen)] = seen
    for row in range(whole):
        partial, full = (
            indices[0, 0, row, : int(counts[0, 0, row])].tolist()
            for counts, indices in (
                (mask.kv_num_blocks, mask.kv_indices),
                (mask.full_kv_num_blocks, mask.full_kv_indices),
            )
        )
        assert not set(partial) & set(full)
        needed = blocks[row].any(dim=(0, 2)).nonzero().flatten().tolist()
        assert set(needed) <= {*partial, *full}
        rows = min(128, len(seen) - 128 * row)
        assert all(blocks[row, :rows, column].all() for column in full)


def test_a_long_prompt_before_two_answers_is_full_and_the_answers_do_not_meet() -> None:
    # 256 tokens that are shared, then 256 of each row: 2 blocks each
    tree = prefix_tree([np.concatenate([np.zeros(256, int), np.full(256, answer)]) for answer in (1, 2)])
    mask = tree_block_mask(tree.branches, CPU)
    assert tree.branches == ((0, 256, 768), (256, 512, 512), (512, 768, 768))
    assert mask.kv_num_blocks.flatten().tolist() == [1, 1, 1, 1, 1, 1], "the diagonal"
    assert mask.full_kv_num_blocks.flatten().tolist() == [0, 1, 2, 3, 2, 3]
    assert mask.full_kv_indices[0, 0, 5, :3].tolist() == [0, 1, 4], "the prompt, and its own answer before"
