"""The reset of streams (RFC 6525), as data channels need it (RFC 8831 section 6.7).

Theory of operation. Each side resets what it sends: an Outgoing SSN Reset Request names streams and the last
TSN sent before. One request of ours is out at a time, for the streams on which nothing waits any more. One of
the peer's is carried out when everything up to its TSN has arrived; until then the answer is "in
progress", and the final one follows by itself. Other requests (resets of our side, of the TSN, more streams)
are denied: no data channel needs them.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp.events import StreamsResetDone
from voicegate.proto.sctp.inbound import Inbound
from voicegate.proto.sctp.outbound import Outbound
from voicegate.proto.sctp.parameters import ParameterType, build_parameter, parameters_untrusted
from voicegate.proto.sctp.rto import RetransmissionTimeout
from voicegate.proto.sctp.wire import MASK, ChunkType, build_chunk, unwrap

MAX_PARAMETERS: Final = 2
"""Parameters of a RE-CONFIG chunk: RFC 6525 section 3.1 allows no combination of more."""
MAX_STREAMS_A_REQUEST: Final = 256
"""Streams in one request of ours: half a packet; the rest follow in the next."""
MAX_CHUNK: Final = 4 + 12 + 16 + 2 * MAX_STREAMS_A_REQUEST
"""Bytes of our longest chunk: an answer and a request."""
MAX_PENDING: Final = 1_024
"""Streams waiting for their reset: as many as `reassembly` remembers."""

_REQUEST = struct.Struct(">III")
_SEQUENCE = struct.Struct(">I")
_RESPONSE = struct.Struct(">II")
_DENIED_KINDS = frozenset(
    (
        ParameterType.INCOMING_RESET,
        ParameterType.TSN_RESET,
        ParameterType.ADD_OUTGOING_STREAMS,
        ParameterType.ADD_INCOMING_STREAMS,
    )
)


class Result(IntEnum):
    """RFC 6525 section 4.4."""

    NOTHING_TO_DO = 0x00
    PERFORMED = 0x01
    DENIED = 0x02
    WRONG_SSN = 0x03
    REQUEST_IN_PROGRESS = 0x04
    BAD_SEQUENCE = 0x05
    IN_PROGRESS = 0x06


class Reconfig:
    """Both directions' resets. The first request number is the side's first TSN (RFC 6525 section 5.1.1)."""

    def __init__(
        self, inbound: Inbound, tsn: int, outbound: Outbound, timeout: RetransmissionTimeout
    ) -> None:
        self.timer: float | None = None
        self.available = True
        """The peer knows RFC 6525."""
        self._inbound = inbound
        self._outbound = outbound
        self._timeout = timeout
        self._next = tsn
        self._expected = (inbound.cumulative + 1) & MASK
        self._pending: dict[int, None] = {}
        self._asked: tuple[int, ...] = ()
        self._request = b""
        self._request_due = False
        self._deferred: tuple[int, int, tuple[int, ...]] | None = None
        self._answer: tuple[int, Result] | None = None
        self._answer_due = False
        self._refused: int | None = None

    def reset(self, stream: int) -> bool:
        """Reset our side of a stream when nothing waits on it; False if too many wait."""
        if len(self._pending) >= MAX_PENDING:
            return False
        self._pending[stream] = None
        return True

    def receive_untrusted(self, value: bytes, now: float) -> StreamsResetDone | None:
        """Take a RE-CONFIG chunk. BadPacket: sctp_reconfig, sctp_parameter."""
        parameters = list(parameters_untrusted(value))
        if not 1 <= len(parameters) <= MAX_PARAMETERS:
            raise BadPacket("sctp_reconfig")
        done = None
        for kind, content in parameters:
            if kind == ParameterType.OUTGOING_RESET:
                self._receive_request(content)
            elif kind == ParameterType.RECONFIG_RESPONSE:
                done = self._receive_response(content, now) or done
            elif kind in _DENIED_KINDS and len(content) >= 4:
                number = _SEQUENCE.unpack_from(content)[0]
                if self._is_new(number):
                    self._respond(number, Result.DENIED)
            else:
                raise BadPacket("sctp_reconfig")
        return done

    def after_data(self) -> None:
        """More has arrived: carry out a reset that waited for it."""
        if self._deferred is not None and self._inbound.cumulative >= self._deferred[1]:
            number, _, streams = self._deferred
            self._deferred = None
            self._perform(number, streams)

    @property
    def has_work(self) -> bool:
        """Whether `poll` might have something."""
        return bool(self._answer_due or self._pending or self._request_due or self._refused is not None)

    def poll(self, room: int, now: float) -> bytes | None:
        """The next RE-CONFIG chunk to send, if it fits."""
        if room < MAX_CHUNK:
            return None
        parameters = b""
        if self._answer_due and self._answer is not None:
            self._answer_due = False
            parameters = build_parameter(ParameterType.RECONFIG_RESPONSE, _RESPONSE.pack(*self._answer))
        if self._refused is not None:
            content = _RESPONSE.pack(self._refused, Result.BAD_SEQUENCE)
            parameters = parameters or build_parameter(ParameterType.RECONFIG_RESPONSE, content)
            self._refused = None
        if self._pending and not self._request:
            self._make_request()
        if self._request_due:
            self._request_due = False
            self.timer = now + self._timeout.value
            parameters += self._request
        return build_chunk(ChunkType.RE_CONFIG, 0, parameters) if parameters else None

    def handle_timeout(self, now: float) -> bool:
        """Whether a request of ours got no answer in time (RFC 6525 section 5.1.1: as T3)."""
        if self.timer is None or now < self.timer:
            return False
        self.timer = None
        self._request_due = True
        self._timeout.back_off()
        return True

    # --- ours -------------------------------------------------------------------------------------

    def _make_request(self) -> None:
        queue = self._outbound.queue
        streams = [stream for stream in self._pending if not queue.waiting(stream)][:MAX_STREAMS_A_REQUEST]
        if not streams:
            return
        for stream in streams:
            del self._pending[stream]
        self._asked = tuple(streams)
        last = self._outbound.last_tsn & MASK
        content = _REQUEST.pack(self._next, (self._expected - 1) & MASK, last)
        content += struct.pack(f">{len(streams)}H", *streams)
        self._request = build_parameter(ParameterType.OUTGOING_RESET, content)
        self._request_due = True

    def _receive_response(self, content: bytes, now: float) -> StreamsResetDone | None:
        if len(content) < _RESPONSE.size:
            raise BadPacket("sctp_reconfig")
        number, result = _RESPONSE.unpack_from(content)
        if not self._request or number != self._next:
            return None  # an answer to a repetition
        if result in (Result.IN_PROGRESS, Result.REQUEST_IN_PROGRESS):
            self.timer = now + self._timeout.value  # RFC 6525 section 5.2.7: ask again
            return None
        streams, self._asked = self._asked, ()
        self._request = b""
        self._request_due = False
        self.timer = None
        self._next = (self._next + 1) & MASK
        performed = result in (Result.NOTHING_TO_DO, Result.PERFORMED)
        if performed:
            self._outbound.queue.restart_streams(streams)
        return StreamsResetDone(streams, performed)

    # --- the peer's -------------------------------------------------------------------------------

    def _receive_request(self, content: bytes) -> None:
        if len(content) < _REQUEST.size or len(content) % 2:
            raise BadPacket("sctp_reconfig")
        number, _, last = _REQUEST.unpack_from(content)
        if not self._is_new(number):
            return
        # Each once: a list of the same number over and over is not worth more work.
        streams = tuple(dict.fromkeys(struct.unpack(f">{len(content) // 2 - 6}H", content[_REQUEST.size :])))
        cumulative = self._inbound.cumulative
        last = unwrap(last, cumulative)
        if last > cumulative:
            self._deferred = (number, last, streams)
            self._respond(number, Result.IN_PROGRESS)
        else:
            self._perform(number, streams)

    def _perform(self, number: int, streams: tuple[int, ...]) -> None:
        self._inbound.reassembly.reset(streams)
        self._respond(number, Result.PERFORMED)

    def _is_new(self, number: int) -> bool:
        """Whether this is the next request; a repeated one gets its answer again (RFC 6525 section 5.2.1)."""
        if number == self._expected:
            self._expected = (number + 1) & MASK
            self._deferred = None
            return True
        if self._answer is not None and self._answer[0] == number:
            self._answer_due = True
        else:
            self._refused = number
        return False

    def _respond(self, number: int, result: Result) -> None:
        self._answer = (number, result)
        self._answer_due = True
