"""Frames to RTP packets: encoder, sequence numbers, and redundancy where the client reports loss."""

from __future__ import annotations

from typing import NamedTuple

from voicegate.media.adaptation import PLAIN, Adaptation
from voicegate.media.codec import open_encoder
from voicegate.media.playout import Frame
from voicegate.media.redundancy import RedSender
from voicegate.proto.rtp import build_rtp


class PayloadTypes(NamedTuple):
    """As negotiated. `red`: RFC 2198 around the primary; None: the client does not take it."""

    primary: int
    red: int | None = None


class RtpSender:
    """One call's stream to its client. `codec` is an SDP name of `CLOCK_RATES`."""

    def __init__(
        self,
        codec: str,
        payload_types: PayloadTypes,
        *,
        ssrc: int,
        first_sequence: int,
        passes: bool = False,
    ) -> None:
        """`passes`: frames are in the codec already."""
        self.changes = 0
        """Times the way of sending was changed for reported loss."""
        self._types = payload_types
        self._ssrc = ssrc
        self._sequence = first_sequence
        self._encoder = open_encoder(codec, bitrate=PLAIN.bitrate, passes=passes)
        self._adaptation = Adaptation(red=payload_types.red is not None)
        self._red = RedSender(payload_types.primary)

    def packet(self, frame: Frame) -> tuple[bytes, int]:
        """The RTP packet of this frame, in the clear, and the octets of its payload."""
        payload = self._encoder.encode(frame.pcm)
        payload_type = self._types.primary
        if self._adaptation.sending.redundant and self._types.red is not None:
            payload_type = self._types.red
            payload = self._red.wrap(payload, frame.timestamp)
        packet = build_rtp(payload_type, frame.marker, self._sequence, frame.timestamp, self._ssrc, payload)
        self._sequence = (self._sequence + 1) & 0xFFFF
        return packet, len(payload)

    def receive_loss(self, fraction_lost: float) -> None:
        """A receiver report about us: this much, 0 to 1, was lost since the one before."""
        before = self._adaptation.sending
        sending = self._adaptation.receive(fraction_lost)
        if sending != before:
            self.changes += 1
            self._encoder.adapt(sending.bitrate, sending.expected_loss)

    def statistics(self) -> dict[str, object]:
        sending = self._adaptation.sending
        return {
            "redundant": sending.redundant,
            "expected_loss": sending.expected_loss,
            "changes": self.changes,
        }

    def close(self) -> None:
        """Free the codec's memory."""
        self._encoder.close()
