"""SCTP over DTLS (RFC 8261, RFC 9260): one association, one path, pure.

Five words. An **association** is the connection; a **packet** carries **chunks**; a DATA chunk has a **TSN**,
its number in the association, and is a fragment of a message on a **stream**.

    wire        packets and chunks, bytes to fields and back
    parameters  the parameters of INIT, INIT ACK and ERROR
    cookie      the state cookie of the handshake
    states      the states of an association and what moves them
    handshake   what is sent and read until there is an association
    lifecycle   the handshake, the shutdown, the end; it owns the three below
    association the verbs; who gets which chunk
    inbound     DATA received: what is acknowledged (`received`), put together and ordered (`reassembly`)
    outbound    DATA sent: the queue (`sendqueue`), what is in flight or lost, how much may be (`congestion`)
    rto         how long to wait for an acknowledgement
    reconfig    the reset of streams (RFC 6525), which is how a data channel closes

TSNs are 32 bits on the wire and plain growing integers inside (`wire.unwrap`), so that comparing them is
comparing integers.
"""

from __future__ import annotations

from voicegate.proto.sctp.association import Association, AssociationStatistics
from voicegate.proto.sctp.events import (
    Connected,
    Disconnected,
    Message,
    SctpEvent,
    SendBufferDrained,
    StreamsReset,
    StreamsResetDone,
)
from voicegate.proto.sctp.states import State

__all__ = [
    "Association",
    "AssociationStatistics",
    "Connected",
    "Disconnected",
    "Message",
    "SctpEvent",
    "SendBufferDrained",
    "State",
    "StreamsReset",
    "StreamsResetDone",
]
