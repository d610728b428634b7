import contextlib
import struct
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.cluster.replay.wire import (
    MAX_BYTES,
    WireError,
    decode_failure,
    decode_task,
    decode_trajectory,
    encode,
    encode_task,
)
from tests.cluster.replay.buffer_rig import failure, task, trajectory

_PREFIX = b"mp\x06T"


def reason_for(data: bytes, **limits: int) -> str:
    with pytest.raises(WireError) as refused:
        decode_trajectory(data, **limits)
    return str(refused.value).partition(":")[0]


def test_what_was_encoded_is_decoded() -> None:
    there = trajectory("g1", 3, oldest=4, newest=5, tokens=9)
    assert decode_trajectory(encode(there)) == there
    assert decode_failure(encode(failure("g1", 2, "engine"))) == failure("g1", 2, "engine")
    assert decode_task(encode_task(task(7))) == task(7)


def test_a_cohort_travels_with_its_episode_and_its_task() -> None:
    played = msgspec.structs.replace(trajectory("g1", 3), cohort="härte 3")
    assert decode_trajectory(encode(played)).cohort == "härte 3"
    failed = msgspec.structs.replace(failure("g1", 2), cohort="x" * 64)
    assert decode_failure(encode(failed)) == failed
    named = msgspec.structs.replace(task(7), options={"cohort": "hard"})
    assert decode_task(encode_task(named)).cohort == "hard"
    assert reason_for(changed(cohort="x" * 65)) == "malformed"


def test_lists_and_tables_among_the_options_of_a_task_travel() -> None:
    named = msgspec.structs.replace(task(7), options={"map": [["S", 1], [True, 2.5]], "prices": {"bread": [2]}})
    assert decode_task(encode_task(named)) == named
    with pytest.raises(WireError, match=r"option map\[0\] is NoneType"):
        decode_task(msgspec.msgpack.encode(msgspec.to_builtins(named) | {"options": {"map": [None]}}))


def test_another_schema_version_is_refused_by_name() -> None:
    data = encode(trajectory("g", 0))
    assert data[:4] == _PREFIX
    assert reason_for(b"mp\x02T" + data[4:]) == "schema"


def test_a_failure_is_not_read_as_a_trajectory() -> None:
    assert reason_for(encode(failure("g", 0))) == "kind"
    with pytest.raises(WireError, match="kind"):
        decode_failure(encode(trajectory("g", 0)))


@pytest.mark.parametrize("data", [b"", b"mp", b"\x80\x04\x95pickle", b"{}"])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    assert reason_for(data) == "foreign"


def changed(**fields: object) -> bytes:
    plain = msgspec.msgpack.decode(encode(trajectory("g", 0))[4:])
    return _PREFIX + msgspec.msgpack.encode({**plain, **fields})


@pytest.mark.parametrize(
    "data",
    [
        changed(surprise=1),
        changed(index="0"),
        changed(turns=[]),
        changed(outcome="won"),
        encode(trajectory("g", 0))[:-1],
        encode(trajectory("g", 0)) + b"\x00",
        _PREFIX + b"\x81\xa5turns\xdd\xff\xff\xff\xff",  # claims four thousand million turns
        _PREFIX + b"\x81\xa5turns" + b"\x91" * 2000,  # nested two thousand deep
        _PREFIX + b"\x81\xa8group_id\xdb\x3b\x9a\xca\x00",  # claims a string of a gigabyte
        _PREFIX + b"\x81\xa8group_id\xa2\xff\xfe",  # not UTF-8
    ],
    ids=["unknown field", "type", "empty", "outcome", "cut", "longer", "4G turns", "nested", "1G text", "utf-8"],
)
def test_malformed_bytes_are_refused_at_once(data: bytes) -> None:
    began = time.monotonic()
    assert reason_for(data) == "malformed"
    assert time.monotonic() - began < 1.0


def test_a_log_prob_that_is_not_finite_is_refused() -> None:
    plain = msgspec.msgpack.decode(encode(trajectory("g", 0))[4:])
    plain["turns"][0]["logprobs"] = struct.pack("<2f", -0.5, float("nan"))
    assert reason_for(_PREFIX + msgspec.msgpack.encode(plain)) == "malformed"


def test_size_is_checked_on_both_sides_before_decoding() -> None:
    data = encode(trajectory("g", 0))
    assert encode(trajectory("g", 0), max_bytes=len(data)) == data
    with pytest.raises(WireError, match="episode 0 of group g takes"):
        encode(trajectory("g", 0), max_bytes=len(data) - 1)
    assert reason_for(data, max_bytes=len(data) - 1) == "oversize"
    assert reason_for(b"\x00" * (MAX_BYTES + 1)) == "oversize"


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_wire_error(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode_trajectory(_PREFIX + noise)


@given(st.integers(4, 150), st.integers(0, 255))
def test_a_changed_byte_gives_a_valid_trajectory_or_a_wire_error(position: int, value: int) -> None:
    data = bytearray(encode(trajectory("g", 0)))
    data[position] = value
    with contextlib.suppress(WireError):
        assert decode_trajectory(bytes(data)).turns
