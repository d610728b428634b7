"""The tokens of an episode's turns as bytes, each of them once: a turn says what it repeats, and holds what it adds.

Ids are packed as int32 and log-probs as float32, little-endian: 4 bytes for a token that was shown, 8 for one that was
sampled. vLLM computes log-probs in float32, so its numbers come back as they were; any other is rounded to the nearest,
by at most 6e-8 of itself.

Not promised: the fewest bytes. A prompt is compared with the latest turn of each lineage, and only from its beginning:
what comes later in both, as where a window dropped turns between, is stored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from milepost.envs.types import Turn, TurnFacts

MAX_TOKENS: Final = 32 * 1024**2
"""Of all contexts of an episode together, each counted where no later one continues it: 128 MiB when it is unpacked."""
_ID: Final = np.dtype("<i4")
_LOGPROB: Final = np.dtype("<f4")
_NOTHING: Final = np.zeros(0, _ID)


class TooManyTokens(ValueError):
    """The contexts of an episode are more than `MAX_TOKENS` together."""


class TokenIds(Sequence[int]):
    """A view of token ids that nobody changes, equal to any list of the same ids."""

    __slots__ = ("_ids",)

    def __init__(self, ids: NDArray[np.int32]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> TokenIds: ...
    def __getitem__(self, place: int | slice) -> int | TokenIds:
        return TokenIds(self._ids[place]) if isinstance(place, slice) else int(self._ids[place])

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self._ids, other) if isinstance(other, TokenIds | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TokenIds({self._ids.tolist()})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._ids, dtype=dtype, copy=copy)


class PackedTurn(TurnFacts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A turn whose tokens are packed. Its response has as many tokens as log-probs, and they are the last of `ids`."""

    repeats: tuple[int, int] | None
    """(k, n): the prompt begins with the first n tokens of turn k's prompt and response; None: with no earlier one's.
    """
    ids: bytes
    """What the prompt adds, then the response."""
    logprobs: bytes


def facts(record: Struct, of: type[Struct]) -> dict[str, Any]:
    """The fields of `record` that it has from its base `of`."""
    return {name: getattr(record, name) for name in of.__struct_fields__}


def pack(turns: Sequence[Turn]) -> list[PackedTurn]:
    """The turns of one episode, packed.

    Raises TooManyTokens, and ValueError for a token id or a log-prob that does not fit into 32 bits.
    """
    packed = []
    latest: dict[int, tuple[int, NDArray[np.int32]]] = {}  # of each lineage: its turn, and the tokens of that
    for k, turn in enumerate(turns):
        source, seen = latest.get(turn.lineage, (k, _NOTHING))
        repeated = len(seen)
        # first: to compare a list with another one is far quicker than to make an array of it
        if source < k and turns[source].is_continued_by(turn.prompt_ids):
            shown = np.concatenate([seen, _ids(turn.prompt_ids[repeated:])])
        else:
            shown = _ids(turn.prompt_ids)
            repeated, source = max(((_common(shown, seen), j) for j, seen in latest.values()), default=(0, k))
        whole = np.concatenate([shown, _ids(turn.response_ids)])
        latest[turn.lineage] = k, whole
        packed.append(
            PackedTurn(
                repeats=(source, repeated) if repeated else None,
                ids=whole[repeated:].tobytes(),
                logprobs=_logprobs(turn.logprobs).tobytes(),
                **facts(turn, TurnFacts),
            )
        )
    _Contexts(packed)
    return packed


def unpack(packed: Sequence[PackedTurn]) -> list[Turn]:
    """The turns that were packed; their prompts are views of arrays that they share.

    Raises TooManyTokens, and ValueError for what `pack` does not make or a `Turn` does not take.
    """
    contexts = _Contexts(packed).filled()
    turns = []
    for k, (turn, context) in enumerate(zip(packed, contexts, strict=True)):
        logprobs = _unpacked(turn.logprobs, _LOGPROB, k)
        start = len(context) - len(logprobs)
        if 4 * len(logprobs) > len(turn.ids):
            raise ValueError(f"turn {k}: {len(logprobs)} log-probs for {len(turn.ids) // 4} token ids")
        turns.append(
            Turn(
                prompt_ids=TokenIds(context[:start]),
                response_ids=context[start:].tolist(),
                logprobs=logprobs.tolist(),
                **facts(turn, TurnFacts),
            )
        )
    return turns


class _Contexts:
    """Which turns share an array: a turn goes on in that of the one it repeats whole, unless another already does."""

    def __init__(self, packed: Sequence[PackedTurn]) -> None:
        """Raises ValueError where a turn repeats what is not there, and TooManyTokens."""
        self._packed = packed
        self._lengths: list[int] = []
        """Of each turn: tokens of prompt and response."""
        self._arrays: list[int] = []
        """Of each turn: its array."""
        self._last: list[int] = []
        """Of each array: its last turn."""
        for k, turn in enumerate(packed):
            source, repeated = turn.repeats or (k, 0)
            if turn.repeats and not (0 <= source < k and 0 < repeated <= self._lengths[source]):
                raise ValueError(f"turn {k} repeats {repeated} tokens of turn {source}, which there are not")
            self._lengths.append(repeated + len(turn.ids) // _ID.itemsize)
            if turn.repeats and repeated == self._lengths[source] and source == self._last[self._arrays[source]]:
                self._arrays.append(self._arrays[source])
                self._last[self._arrays[source]] = k
            else:
                self._arrays.append(len(self._last))
                self._last.append(k)
        total = sum(self._lengths[k] for k in self._last)
        if total > MAX_TOKENS:
            raise TooManyTokens(
                f"its contexts hold {total} tokens together, the limit is {MAX_TOKENS}: shorten episodes"
            )

    def filled(self) -> list[NDArray[np.int32]]:
        """Prompt and response of each turn. Raises ValueError where ids are not packed as they should be."""
        arrays = [np.empty(self._lengths[k], np.int32) for k in self._last]
        for k, turn in enumerate(self._packed):
            array = arrays[self._arrays[k]]
            source, repeated = turn.repeats or (k, 0)
            if self._arrays[source] != self._arrays[k]:
                array[:repeated] = arrays[self._arrays[source]][:repeated]
            array[repeated : self._lengths[k]] = _ids(_unpacked(turn.ids, _ID, k))
        for array in arrays:
            array.flags.writeable = False
        return [arrays[self._arrays[k]][:length] for k, length in enumerate(self._lengths)]


def _ids(ids: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int32]:
    """Raises ValueError for what is no token id."""
    try:
        array = np.asarray(ids, _ID)
    except OverflowError as error:
        raise ValueError(f"a token id does not fit into 32 bits: {error}") from error
    if array.min(initial=0) < 0:
        raise ValueError(f"token id {array.min()}")
    return array


def _logprobs(logprobs: Sequence[float]) -> NDArray[np.float32]:
    """Raises ValueError for one that is beyond float32."""
    with np.errstate(over="ignore"):
        array = np.asarray(logprobs, _LOGPROB)
    if not np.isfinite(array).all():
        raise ValueError(f"a log-prob does not fit into 32 bits: {min(logprobs)}")
    return array


def _unpacked(packed: bytes, kind: np.dtype[Any], turn: int) -> NDArray[Any]:
    """Raises ValueError for a part of a number."""
    if len(packed) % kind.itemsize:
        raise ValueError(f"turn {turn}: {len(packed)} bytes are no numbers of {kind.itemsize}")
    return np.frombuffer(packed, kind)


def _common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length
