"""Output heads that are the embedding: where a model has one of its own, it is repacked after a reload."""

import torch

from milepost.actors import transfer


def test_a_model_without_an_output_head_of_its_own_has_none_to_repack() -> None:
    headless = torch.nn.ModuleDict({"embed_tokens": torch.nn.Embedding(4, 2)})  # as vLLM's Gemma 2 and Cohere
    transfer._repack_tied_heads(headless)
