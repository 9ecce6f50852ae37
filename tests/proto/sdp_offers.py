"""Real offers, and the small edits that tests make to them."""

from __future__ import annotations

from pathlib import Path

from voicegate.proto.errors import BadOffer
from voicegate.proto.sdp import Offer, parse_offer_untrusted
from voicegate.proto.sdp_answer import AnswerParameters, build_answer

DATA = Path(__file__).parent.parent / "data"
OFFERS = {path.stem: path.read_bytes().decode() for path in sorted(DATA.glob("*.sdp"))}
ANSWERABLE = [name for name in OFFERS if name not in ("chromium-data-only", "chromium-video-only")]
HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"

PARAMETERS = AnswerParameters(
    ufrag="RsyneX9nYRgVbgDJNgLsu3g",
    password="a+password/of+24+letters",
    fingerprint="sha-256 " + ":".join(["AB"] * 32),
    candidates=("203.0.113.10:3478", "[2001:db8::10]:3479"),
    ssrc=1234567890,
    cname="voicegate",
    session_id=4611686018427387904,
    stream_id="agent",
    track_id="agent-audio",
)


def parse(name: str) -> Offer:
    return parse_offer_untrusted(OFFERS[name])


def edit(name: str, old: str, new: str, count: int = -1) -> str:
    """An offer with a replacement that must have changed something."""
    text = OFFERS[name].replace(old, new, count)
    assert text != OFFERS[name]
    return text


def drop(text: str, attribute: str) -> str:
    """Without every line of an attribute."""
    return "".join(
        line + "\r\n"
        for line in text.splitlines()
        if not line.startswith((f"a={attribute}:", f"a={attribute}\r")) and line != f"a={attribute}"
    )


def answer_lines(offer: Offer) -> list[str]:
    return build_answer(offer, PARAMETERS).split("\r\n")


def answer_or_refuse(text: str) -> None:
    """Whatever the text: an answer whose lines are all well-formed, or `BadOffer`."""
    try:
        offer = parse_offer_untrusted(text)
    except BadOffer as error:
        assert error.status in (400, 422)
        return
    for line in build_answer(offer, PARAMETERS).split("\r\n")[:-1]:
        assert line[1] == "=" and line.isprintable() and line.isascii(), line
