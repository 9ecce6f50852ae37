"""What of a board that anybody may write to is believed; no board, no time but what is given."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from voicegate.net.leases import GAP_SECONDS, Lease, LeaseTable, all_relays, all_signalings, transceivers_of
from voicegate.net.registry import RelayRecord, SignalingRecord, TransceiverRecord
from voicegate.proto.keys import ClusterKeys

KEYS = ClusterKeys.parse(["0:" + "k" * 32])
KINDS: list[Any] = [transceivers_of(1, 6.0), all_relays(), all_signalings(6.0)]


def table() -> LeaseTable[SignalingRecord]:
    return LeaseTable(all_signalings(6.0), KEYS)


def lease(id: int = 5, boot: str = "a", serial: int = 1, started: int = 100) -> Lease[SignalingRecord]:
    return Lease(SignalingRecord(id=id, boot=boot), started, serial)


def test_a_record_goes_when_it_was_missing_for_half_a_lease() -> None:
    read = table()
    there = {5: read.seal(lease())}
    for now, tokens in ((0.0, there), (1.0, {}), (2.0, {}), (3.0, there), (4.0, {}), (6.0, {}), (7.0, {})):
        read.read_untrusted(tokens, now)
        assert 5 in read.records
    read.read_untrusted({}, 7.1)
    assert 5 not in read.records and read.counts["expired"] == 1


def test_our_own_record_never_goes() -> None:
    read = table()
    read.own_id = 5
    read.read_untrusted({5: read.seal(lease())}, 0.0)
    for now in range(1, 20):
        read.read_untrusted({}, float(now))
    assert 5 in read.records


def test_nobody_is_missed_while_nothing_could_be_read() -> None:
    read = table()
    read.read_untrusted({5: read.seal(lease())}, 0.0)
    read.read_untrusted({}, 1.0)
    read.read_untrusted({}, 1.0 + GAP_SECONDS + 0.1)
    assert 5 in read.records
    read.read_untrusted({}, 1.0 + GAP_SECONDS + 3.0)
    assert 5 in read.records


def test_a_snapshot_counts_as_present_until_readings_tell_otherwise() -> None:
    before, after = table(), table()
    for id in (5, 6):
        before.apply(lease(id), before.seal(lease(id)))
    gone = Lease(SignalingRecord(id=7, boot="a"), 100, 1, gone=True)
    after.load_untrusted([*before.tokens(), before.seal(gone), "junk"])
    assert {*after.records} == {5, 6} and after.counts["forged"] == 1
    after.read_untrusted({5: after.seal(lease(5, serial=2))}, 0.0)
    assert {*after.records} == {5, 6}
    after.read_untrusted({5: after.seal(lease(5, serial=3))}, 2.9)
    after.read_untrusted({5: after.seal(lease(5, serial=3))}, 3.1)
    assert {*after.records} == {5}


def test_a_renewal_without_news_leaves_the_mapping_as_it_is() -> None:
    read = table()
    read.read_untrusted({5: read.seal(lease())}, 0.0)
    before = read.records
    read.read_untrusted({5: read.seal(lease(serial=2))}, 1.0)
    read.receive_untrusted(read.seal(lease(serial=3)))
    assert read.records is before
    read.put(SignalingRecord(id=5, boot="a", keys=("seen by this process only",)))
    read.receive_untrusted(read.seal(lease(serial=4)))
    assert read.records == before


def test_a_later_start_wins_and_nothing_goes_backwards() -> None:
    read = table()
    for token in (lease(serial=2), lease(), lease(boot="b", started=99, serial=9)):
        read.receive_untrusted(read.seal(token))
    assert read.records[5].boot == "a"
    read.receive_untrusted(read.seal(lease(boot="b", started=101, serial=0)))
    read.receive_untrusted(read.seal(lease(serial=50)))
    assert read.records[5].boot == "b"
    assert read.start_time(5, 0) == 102 and read.start_time(6, 3) == 3


@given(
    payload=st.binary(min_size=1, max_size=200),
    kind=st.sampled_from(KINDS),
    sealed=st.booleans(),
    text=st.text(max_size=100),
)
def test_any_token_is_a_lease_or_is_counted(payload: bytes, kind: Any, sealed: bool, text: str) -> None:
    read: LeaseTable[Any] = LeaseTable(kind, KEYS)
    token = KEYS.seal.seal(kind.label, payload) if sealed else text
    if read.open_untrusted(token) is None:
        assert read.counts["forged"] + read.counts["foreign"] == 1
    read.receive_untrusted(token)
    read.read_untrusted({1: token}, 0.0)
    read.load_untrusted([token])


@given(id=st.integers(-5, 2**22), serial=st.integers(0, 2**63), cluster=st.integers(0, 3))
def test_a_sealed_lease_comes_back(id: int, serial: int, cluster: int) -> None:
    records = [
        TransceiverRecord(id=id, cluster=cluster, link="a:1", control="a:2", boot="b"),
        RelayRecord(id=id, cluster=cluster, ingress="i", boot="b", links=("a:1",), addresses=()),
        SignalingRecord(id=id, boot="b"),
    ]
    for kind, record in zip(KINDS, records, strict=True):
        read: LeaseTable[Any] = LeaseTable(kind, KEYS)
        opened = read.open_untrusted(read.seal(Lease(record, 1, serial)))
        ours = 1 <= id < 2**20 and (cluster == 1 or not isinstance(record, TransceiverRecord))
        assert (opened is not None and opened.record == record) is ours
