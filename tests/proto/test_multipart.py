"""Forms as real clients write them, and what nobody should write."""

from __future__ import annotations

import time

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.multipart import MAX_PART_HEADER, MAX_PARTS, Part, parse_multipart_untrusted

SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\n"
TYPE = "multipart/form-data; boundary=b0"


def form(*parts: str, end: str = "--b0--\r\n", line: str = "\r\n") -> bytes:
    return "".join(f"--b0{line}{part}{line}" for part in parts).encode() + end.encode()


def part(name: str, body: str, disposition: str = "", *headers: str, line: str = "\r\n") -> str:
    lines = [f'Content-Disposition: form-data; name="{name}"{disposition}', *headers, "", body]
    return line.join(lines)


@pytest.mark.parametrize("disposition", ["", '; filename=""', '; filename="offer.sdp"', "; filename=x"])
@pytest.mark.parametrize("kind", [(), ("Content-Type: application/sdp",), ("content-type:application/sdp",)])
def test_the_forms_that_clients_send(disposition: str, kind: tuple[str, ...]) -> None:
    sdp, session = part("sdp", SDP, disposition, *kind), part("session", "{}")
    for body in (form(sdp, session), form(session, sdp), b"preamble\r\n" + form(sdp, session) + b"epilogue"):
        parts = parse_multipart_untrusted(TYPE, body)
        assert parts["sdp"] == Part("application/sdp" if kind else "", SDP.encode())
        assert parts["session"].body == b"{}"


def test_bare_line_feeds_and_blanks_behind_the_delimiter() -> None:
    body = form(part("sdp", "v=0\ns=-\n", line="\n"), end="--b0--", line="\n").replace(
        b"--b0\n", b"--b0 \t\n"
    )
    assert parse_multipart_untrusted(TYPE, body) == {"sdp": Part("", b"v=0\ns=-\n")}


def test_an_empty_part_and_one_that_looks_like_a_delimiter() -> None:
    body = form(part("sdp", ""), part("session", "x--b0\r\n--b\r\n --b0\r\n--b01"))
    assert [p.body for p in parse_multipart_untrusted(TYPE, body).values()] == [
        b"",
        b"x--b0\r\n--b\r\n --b0\r\n--b01",
    ]


@pytest.mark.parametrize(
    "boundary", ['"b0"', "b0 ; charset=utf-8", "b0;x=y", '"b0"; boundary=other'], ids=lambda b: b
)
def test_spellings_of_the_boundary(boundary: str) -> None:
    kind = f"Multipart/Form-Data; charset=x; Boundary={boundary}"
    assert set(parse_multipart_untrusted(kind, form(part("sdp", SDP)))) == {"sdp"}


@pytest.mark.parametrize("files", [{"sdp": (None, SDP, "application/sdp")}, {"sdp": ("", SDP)}, {"sdp": SDP}])
def test_a_foreign_encoder(files: dict[str, object]) -> None:
    made = httpx.Request("POST", "http://x", files={**files, "session": (None, '{"ü": 1}')})
    parts = parse_multipart_untrusted(made.headers["content-type"], made.read())
    assert parts["sdp"].body.decode() == SDP and parts["session"].body.decode() == '{"ü": 1}'


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("multipart/form-data", form(part("a", "b")), "boundary"),
        ("multipart/form-data; boundary=", form(part("a", "b")), "boundary"),
        (f"multipart/form-data; boundary={'x' * 201}", b"", "boundary"),
        ("multipart/form-data; boundary=\u00fc", b"", "boundary"),
        (TYPE, b"", "delimiter"),
        (TYPE, b"--b0--", "delimiter"),
        (TYPE, form(part("sdp", SDP), end=""), "delimiter"),
        (TYPE, form(part("a", "1"), part("a", "2")), "name"),
        (TYPE, form('Content-Disposition: attachment; name="a"\r\n\r\nx'), "name"),
        (TYPE, form('Content-Disposition: form-data; filename="a"\r\n\r\nx'), "name"),
        (TYPE, form("\r\nno header"), "header"),
        (TYPE, form("no empty line"), "header"),
        (TYPE, form("x: " + "y" * MAX_PART_HEADER + "\r\n\r\nz"), "header"),
        (TYPE, form(part("a", "b", "", "Content-Transfer-Encoding: base64")), "encoding"),
        (TYPE, form(*(part(f"p{i}", "x") for i in range(MAX_PARTS + 1))), "parts"),
    ],
)
def test_what_is_refused(kind: str, body: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"multipart_{reason}"):
        parse_multipart_untrusted(kind, body)


@given(st.text(max_size=60), st.binary(max_size=400))
def test_anything_is_read_or_refused(kind: str, body: bytes) -> None:
    for content_type in (kind, TYPE):
        try:
            parse_multipart_untrusted(content_type, body)
        except BadPacket as error:
            assert error.reason.startswith("multipart_")


PIECES = [
    "--b0",
    "--b0--",
    "\r\n",
    "\n",
    "\r",
    " ",
    'Content-Disposition: form-data; name="',
    'a"',
    ":",
    "\\",
]


@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_shuffled_syntax_is_read_or_refused(pieces: list[str]) -> None:
    try:
        parts = parse_multipart_untrusted(TYPE, "".join(pieces).encode())
        assert parts
    except BadPacket as error:
        assert error.reason.startswith("multipart_")


@given(
    st.dictionaries(
        st.text("abcsdp-_", min_size=1, max_size=9), st.binary(max_size=200), min_size=1, max_size=5
    )
)
def test_round_trip(fields: dict[str, bytes]) -> None:
    assume(b"--b0" not in b" ".join(fields.values()))
    body = b"".join(
        b'--b0\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in fields.items()
    )
    parts = parse_multipart_untrusted(TYPE, body + b"--b0--")
    assert {name: p.body for name, p in parts.items()} == fields


@pytest.mark.parametrize(
    "body",
    [b"--b0" * 40_000, b"\r\n" * 80_000, b"--b0" + b" " * 160_000, (b"\r\n--b0" + b"\t" * 100) * 1500,
     b"--b0\r\n" + b'Content-Disposition: form-data; name="' + b"\\" * 150_000 + b"\r\n--b0--"],
)  # fmt: skip
def test_hostile_bodies_take_no_time(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises(BadPacket):
        parse_multipart_untrusted(TYPE, body)
    with pytest.raises(BadPacket):
        parse_multipart_untrusted("multipart/form-data" + body.decode()[:30_000], body)
    assert time.process_time() - began < 1.0
