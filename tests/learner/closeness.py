"""How far two lists of tensors are apart."""

from collections.abc import Sequence

from torch import Tensor


def differ(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor where that is above 1; 0 for no numbers."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs), default=0.0)
