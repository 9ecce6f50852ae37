"""From an offer to a call: what is minted, answered and put together. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from voicegate.media.sound import line_between
from voicegate.proto import realtime
from voicegate.proto.callid import mint_call_id
from voicegate.proto.dtls import DtlsCertificate
from voicegate.proto.event_filter import EventFilter
from voicegate.proto.ice import IceLite
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.rtcp_session import RtcpOptions
from voicegate.proto.sctp.handshake import ENTROPY as SCTP_ENTROPY
from voicegate.proto.sdp import Audio, Direction, parse_offer_untrusted
from voicegate.proto.sdp_answer import AnswerParameters, build_answer
from voicegate.proto.srtp import MAX_FIRST_SEQUENCE
from voicegate.proto.ticket import GRACE_SECONDS
from voicegate.roles.transceiver.audio import CallAudio
from voicegate.roles.transceiver.call import Call
from voicegate.roles.transceiver.channel import ChannelParameters
from voicegate.roles.transceiver.conversation import Conversation
from voicegate.roles.transceiver.entry import Entry
from voicegate.roles.transceiver.life import (
    CallLimits,
)
from voicegate.roles.transceiver.outbox import Audience, Filters
from voicegate.roles.transceiver.turn_plan import NO_PLAN, TurnPlan

ENTROPY_LENGTH: Final = 42 + SCTP_ENTROPY
"""Random bytes that one call takes: nonces of ticket and id, SSRC, CNAME, session id, first RTP values."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this transceiver is."""

    cluster: int
    transceiver: int
    boot: str
    link: str
    """`ip:port` of the link socket, as relays reach it."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What signaling and the configuration ask for."""

    sdp: str
    candidates: tuple[str, ...]
    """`host:port` or `host:port/tcp`, as they go into the answer; checked already."""
    session: Mapping[str, Any] = field(default_factory=dict)
    """The settings that the agent's dialler asks for."""
    dcid: int | None = None
    """The stream id of a pre-negotiated data channel."""
    client_events: EventFilter = field(default_factory=EventFilter)
    server_events: EventFilter = field(default_factory=EventFilter)
    """What may pass the data channel."""
    key_id: str = ""
    formats: realtime.Formats = field(default_factory=lambda: realtime.PCM_FORMATS)
    """What the agent hears and speaks."""
    turns: TurnPlan = NO_PLAN
    keep_warm: bool = False
    """The client is sent a little silence while its agent says nothing."""


def make_call(
    wishes: Wishes,
    *,
    identity: Identity,
    keys: ClusterKeys,
    certificate: DtlsCertificate,
    limits: CallLimits,
    entropy: bytes,
    random: Callable[[], float],
    now: float,
    wall_offset: float,
) -> tuple[Entry, str]:
    """A call and the SDP answer that invites to it. Raises BadOffer."""
    assert len(entropy) == ENTROPY_LENGTH, "ids and initial values are cut from it below"
    offer = parse_offer_untrusted(wishes.sdp)
    expires = now + wall_offset + limits.max_seconds + GRACE_SECONDS
    ufrag = keys.tickets.mint(identity.cluster, identity.transceiver, expires, entropy[0:5])
    password = keys.tickets.password(ufrag.encode())
    parameters = AnswerParameters(
        ufrag=ufrag,
        password=password.decode(),
        fingerprint="sha-256 " + certificate.fingerprint.hex(":").upper(),
        candidates=wishes.candidates,
        ssrc=int.from_bytes(entropy[16:20], "big") or 1,
        cname=entropy[20:28].hex(),
        session_id=int.from_bytes(entropy[28:36], "big") >> 1,
        stream_id="voicegate",
        track_id="agent",
    )
    answer = build_answer(offer, parameters)
    audio = _make_audio(offer.audio, parameters, entropy[36:42], wishes, random, wall_offset, now)
    channel = None
    if offer.application is not None and offer.channel_accepted:
        channel = ChannelParameters(
            entropy[42:], offer.application.sctp_port, offer.application.max_message_size, wishes.dcid
        )
    call = Call(
        mint_call_id(keys.seal, identity.cluster, identity.transceiver, entropy[8:16]),
        ice=IceLite(ufrag, password, offer.transport.ufrag),
        certificate=certificate,
        dtls_active=offer.transport.dtls_active,
        remote_fingerprints=offer.transport.fingerprints,
        audio=audio,
        channel=channel,
        limits=limits,
        now=now,
    )
    conversation = Conversation(
        call.media,
        session=wishes.session,
        filters={Audience.CLIENT: Filters(wishes.client_events, wishes.server_events)},
        max_client_message=(channel.max_message_size or None) if channel is not None else None,
        formats=wishes.formats,
        turns=wishes.turns,
    )
    return Entry(call, conversation, ufrag.encode(), wishes.key_id), answer


def _make_audio(
    offered: Audio,
    parameters: AnswerParameters,
    entropy: bytes,
    wishes: Wishes,
    random: Callable[[], float],
    wall_offset: float,
    now: float,
) -> CallAudio:
    return CallAudio(
        offered.format,
        line_between(offered.format.codec.value, wishes.formats),
        listening=offered.direction in (Direction.SENDRECV, Direction.RECVONLY),
        rtcp=RtcpOptions(
            reduced_size=offered.rtcp_rsize,
            nack=offered.nack,
            transport_cc_id=offered.transport_cc_id,
            extended_reports=offered.rtcp_xr,
        ),
        ssrc=parameters.ssrc,
        cname=parameters.cname,
        # RFC 3550 section 5.1 asks for random starts; libsrtp for this bound (see proto.srtp).
        first_sequence=int.from_bytes(entropy[0:2], "big") & MAX_FIRST_SEQUENCE,
        first_timestamp=int.from_bytes(entropy[2:6], "big"),
        random=random,
        wall_offset=wall_offset,
        now=now,
        red_payload_type=offered.red_payload_type,
        cn_payload_type=offered.cn_payload_type,
        telephone_event=offered.telephone_event,
        keep_warm=wishes.keep_warm,
    )
