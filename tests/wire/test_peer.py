"""The wire between two fronts: what is sent arrives, with its descriptors, and nothing else gets through."""

import array
import errno
import os
import resource
import socket

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from swapd.wire import peer as wire

EPOCH = st.integers(0, 2**64 - 1)
ID = st.integers(0, 2**64 - 1)
NAME = st.text(min_size=1, max_size=40).filter(lambda name: 0 < len(name.encode(errors="replace")) <= 255)
SMALL = st.binary(max_size=200)

MESSAGES = st.one_of(
    st.builds(
        wire.Offer,
        EPOCH,
        st.integers(0, 2**32 - 1),
        st.lists(NAME, max_size=3).map(tuple),
        st.lists(SMALL, max_size=20).map(tuple),
    ),
    st.builds(wire.Held, EPOCH, st.integers(0, 2**32 - 1)),
    st.builds(wire.Commit, EPOCH),
    st.builds(wire.Started, EPOCH, st.floats(allow_nan=False)),
    st.builds(wire.Abort, EPOCH, st.text(max_size=100)),
    st.builds(wire.Straggler, EPOCH, ID, st.integers(0, wire.MAX_CARRIED_BYTES)),
    st.builds(wire.Adopted, EPOCH, ID),
    st.builds(wire.Refused, EPOCH, ID),
    st.builds(wire.Bytes, EPOCH, ID, st.binary(min_size=1, max_size=200)),
)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wire.prepare(ours)
    wire.prepare(theirs)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def open_fds():
    opened = []

    def open_some(count):
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        opened.extend(fds)
        return fds

    yield open_some
    wire.close_all(opened)


def fd_count():
    return len(os.listdir("/proc/self/fd"))


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message):
    data = wire.encode(message)
    assert len(data) <= wire.MAX_MESSAGE_BYTES
    assert wire.decode(data) == message


@given(st.binary(max_size=400))
def test_garbage_is_refused(data):
    try:
        message = wire.decode(data)
    except wire.WireError:
        return
    assert wire.decode(wire.encode(message)) == message


@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_a_damaged_message_is_refused_or_another_message(message, data):
    raw = bytearray(wire.encode(message))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    damaged = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        decoded = wire.decode(damaged)
    except wire.WireError:
        return
    assert isinstance(decoded, wire.Message)


@pytest.mark.parametrize(
    "message",
    [
        wire.Offer(1, 0, (), (b"",) * 254),
        wire.Offer(1, 0, ("a",), (b"",) * 253),
        wire.Offer(1, 0, ("",), ()),
        wire.Offer(1, 0, ("n" * 256,), ()),
        wire.Offer(1, 0, (), (b"x" * (wire.MAX_HEAD_BYTES + 1),)),
        wire.Offer(1, 0, (), (b"x" * wire.MAX_HEAD_BYTES,) * 3),
        wire.Bytes(1, 1, b"x" * (wire.MAX_PART_BYTES + 1)),
    ],
    ids=["fds", "fds and listener", "no name", "long name", "head", "heads", "part"],
)
def test_what_is_over_a_limit_is_not_sent(message):
    with pytest.raises(wire.WireError):
        wire.encode(message)


def test_descriptors_arrive_with_their_message(ends, open_fds):
    ours, theirs = ends
    offer = wire.Offer(3, 0, ("main",), (b"", b"GET /"))
    wire.send(ours, offer, open_fds(3))
    received = wire.receive(theirs)
    assert received is not None
    assert (received.message, len(received.fds), received.short) == (offer, 3, False)
    assert all(not os.get_inheritable(fd) for fd in received.fds)
    wire.close_all(received.fds)


def test_the_largest_batch_arrives(ends, open_fds):
    ours, theirs = ends
    fds = open_fds(wire.MAX_FDS)
    wire.send(ours, wire.Offer(3, 0, (), (b"",) * wire.MAX_FDS), fds)
    received = wire.receive(theirs)
    assert received is not None
    assert len(received.fds) == wire.MAX_FDS
    wire.close_all(received.fds)


def test_descriptors_lost_for_lack_of_room_are_noticed(ends, open_fds):
    ours, theirs = ends
    fds = open_fds(50)
    wire.send(ours, wire.Offer(3, 0, (), (b"",) * 50), fds)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) + 10, before[1]))
    try:
        received = wire.receive(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert received is not None
    assert received.short
    assert len(received.fds) < 50
    wire.close_all(received.fds)


@pytest.mark.parametrize(("announced", "sent"), [(2, 1), (1, 2), (0, 3)])
def test_descriptors_that_were_not_announced_are_closed(ends, open_fds, announced, sent):
    ours, theirs = ends
    fds = open_fds(sent)
    before = fd_count()
    data = wire.encode(wire.Offer(3, 0, (), (b"",) * announced))
    ours.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    with pytest.raises(wire.WireError):
        wire.receive(theirs)
    assert fd_count() == before


def test_a_datagram_over_the_limit_is_refused(ends):
    ours, theirs = ends
    ours.send(b"x" * (wire.MAX_MESSAGE_BYTES + 2))
    with pytest.raises(wire.WireError):
        wire.receive(theirs)


def test_nothing_yet_the_end_and_a_broken_end_are_told_apart(ends):
    ours, theirs = ends
    with pytest.raises(BlockingIOError):
        wire.receive(theirs)
    wire.send(theirs, wire.Commit(1))  # never read by the other side: its close resets this one
    wire.send(ours, wire.Commit(2))
    ours.close()
    received = wire.receive(theirs)
    assert received is not None
    assert received.message == wire.Commit(2)  # what was sent before the end still comes
    assert wire.receive(theirs) is None
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is checked)
        wire.send(theirs, wire.Commit(3))
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


@given(
    st.integers(0, 5),
    st.lists(st.sampled_from([b"", b"", b"", b"x" * 100, b"y" * wire.MAX_HEAD_BYTES]), max_size=600),
)
@settings(max_examples=50, deadline=None)
def test_batches_keep_order_and_limits(listeners, heads):
    named = [(f"l{number}", number) for number in range(listeners)]
    connections = [(1000 + number, head) for number, head in enumerate(heads)]
    batches = wire.batches(9, named, connections)
    assert [offer.batch for offer, _ in batches] == list(range(len(batches)))
    assert [name for offer, _ in batches for name in offer.listeners] == [name for name, _ in named]
    assert [head for offer, _ in batches for head in offer.heads] == heads
    assert [fd for _, fds in batches for fd in fds] == [fd for _, fd in named] + [fd for fd, _ in connections]
    for offer, fds in batches:
        assert len(fds) == wire.descriptors_of(offer) <= wire.MAX_FDS
        wire.encode(offer)
