"""Keys replaced in place: whatever the order in which processes reload, each opens what others mint."""

from __future__ import annotations

import threading
from itertools import permutations

import pytest

from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import LinkGuard

OLD, NEW = "0:" + "o" * 32, "1:" + "n" * 32
STEPS = ([OLD], [OLD, NEW], [NEW, OLD], [NEW])


class Process:
    """What a role makes of its keys, once, at its start."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys = ClusterKeys.parse(STEPS[0])
        self.tickets, self.seal = self.keys.tickets, self.keys.seal
        self.guard = LinkGuard(self.keys.link, name)

    def take_what_is_minted_by(self, other: Process) -> None:
        ticket = other.tickets.mint(1, 7, 1000.0, bytes(5)).encode()
        assert self.tickets.open_untrusted(ticket).transceiver == 7
        assert self.tickets.password(ticket) == other.tickets.password(ticket)
        assert self.tickets.clone().open_untrusted(ticket).transceiver == 7
        assert self.seal.open_untrusted(b"x", other.seal.seal(b"x", b"value")) == b"value"
        assert self.keys.accepts_control_token(other.keys.control_token)
        for _ in range(2):  # the second one is from the guard's memory
            header = other.keys.link_header(other.name, self.name, 5)
            assert self.guard.accepts(other.name, header, 5)


def test_old_and_new_are_accepted_in_every_order_of_reloading() -> None:
    for order in permutations(range(3)):
        processes = [Process(name) for name in ("10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3")]
        for step in STEPS:
            for n in order:
                processes[n].keys.replace(step)
                for one in processes:
                    for other in processes:
                        one.take_what_is_minted_by(other)


def test_what_is_retired_opens_no_more_not_even_from_a_memory() -> None:
    process, stranger = Process("a:1"), Process("b:2")
    header = stranger.keys.link_header("b:2", "a:1", 5)
    ticket = stranger.tickets.mint(1, 7, 1000.0, bytes(5)).encode()
    assert process.guard.accepts("b:2", header, 5)
    clone = process.keys.tickets.clone()
    version = process.keys.version
    process.keys.replace([NEW])
    assert process.keys.version == version + 1
    assert not process.guard.accepts("b:2", header, 5)
    with pytest.raises(BadPacket, match="ticket_key"):
        process.tickets.open_untrusted(ticket)
    assert clone.open_untrusted(ticket).transceiver == 7, "a clone is of its moment"
    # A call that is up is checked to its end, by whichever thread, and after further rotations.
    process.keys.replace(["2:" + "m" * 32])
    for keys in (process.tickets, process.tickets.clone(), process.tickets.clone().clone()):
        assert keys.password(ticket) == stranger.tickets.password(ticket)
        with pytest.raises(BadPacket, match="ticket_key"):
            keys.open_untrusted(ticket)
    process.keys.replace(["0:" + "z" * 32])
    assert process.tickets.password(ticket) != stranger.tickets.password(ticket), "the id is another's now"
    with pytest.raises(BadPacket, match="seal"):
        process.seal.open_untrusted(b"x", stranger.seal.seal(b"x", b"value"))
    assert not process.keys.accepts_control_token(stranger.keys.control_token)


def test_another_secret_under_the_same_id_is_another_key() -> None:
    process, stranger = Process("a:1"), Process("b:2")
    header = stranger.keys.link_header("b:2", "a:1", 5)
    assert process.guard.accepts("b:2", header, 5)
    before = process.keys.marks
    process.keys.replace(["0:" + "z" * 32])
    assert process.keys.marks[0].startswith("0:") and process.keys.marks != before
    assert not process.guard.accepts("b:2", header, 5)


def test_marks_name_secrets_in_the_order_of_minting() -> None:
    keys = ClusterKeys.parse([NEW, OLD])
    assert [mark[:2] for mark in keys.marks] == ["1:", "0:"] and all(len(mark) == 10 for mark in keys.marks)
    assert ClusterKeys.parse([OLD]).marks == keys.marks[1:]
    # HKDF-SHA256 (RFC 5869) by hand: extract with 32 zeros, expand with the label and 1.
    import hashlib
    import hmac

    extracted = hmac.new(bytes(32), b"o" * 32, hashlib.sha256).digest()
    expanded = hmac.new(extracted, b"voicegate mark\x01", hashlib.sha256).hexdigest()
    assert keys.marks[1] == f"0:{expanded[:8]}"


def test_secrets_that_cannot_be_used_change_nothing() -> None:
    keys = ClusterKeys.parse([OLD])
    before = keys.marks, keys.version, keys.control_token, dict(keys.link)
    for entries in ([], ["0:short"], [NEW, NEW], ["7:" + "x" * 32]):
        with pytest.raises(ValueError):
            keys.replace(entries)
    assert before == (keys.marks, keys.version, keys.control_token, dict(keys.link))


def test_another_thread_sees_whole_keys() -> None:
    """A data plane clones tickets, writes link headers and seals while the keys are replaced."""
    keys = ClusterKeys.parse([OLD])
    both = ClusterKeys.parse([OLD, NEW])
    guard = LinkGuard(both.link, "t")
    stop = threading.Event()
    failures: list[BaseException] = []

    def look() -> None:
        try:
            while not stop.is_set():
                ticket = keys.tickets.clone().mint(1, 7, 1000.0, bytes(5)).encode()
                assert both.tickets.open_untrusted(ticket).transceiver == 7
                assert guard.accepts("r", keys.link_header("r", "t", 5), 5)
                assert both.seal.open_untrusted(b"x", keys.seal.seal(b"x", b"v")) == b"v"
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for n in range(300):
        keys.replace(STEPS[3] if n % 2 else STEPS[0])
    stop.set()
    thread.join(10)
    assert not failures and not thread.is_alive()
