"""The reader of common frames against wsproto: whatever comes, cut anywhere, the parts are the whole."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Ping, TextMessage

from voicegate.agents.frames import MAX_WAITED, FrameReader, text_frame


def written(*events: TextMessage | BytesMessage | Ping) -> bytes:
    server = Connection(ConnectionType.SERVER)
    return b"".join(server.send(event) for event in events)


def read(wire: bytes, cuts: list[int]) -> list[str]:
    """The text messages that come out of the reader and of wsproto behind it, in order."""
    reader, parser = FrameReader(), Connection(ConnectionType.CLIENT)
    messages, partial = [], ""
    places = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    for start, stop in pairwise(places):
        for part in reader.split_untrusted(wire[start:stop]):
            if isinstance(part, str):
                assert not partial, "a whole message inside a fragmented one"
                messages.append(part)
                continue
            parser.receive_data(bytes(part))
            for event in parser.events():
                if isinstance(event, TextMessage):
                    partial += event.data
                    if event.message_finished:
                        messages.append(partial)
                        partial = ""
    return messages


texts = st.one_of(st.text(max_size=300), st.integers(120, 70_000).map(lambda size: "x" * size))


@given(st.lists(st.tuples(texts, st.booleans()), max_size=6), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_messages_survive_any_cutting(said: list[tuple[str, bool]], cuts: list[int]) -> None:
    events: list[TextMessage | BytesMessage | Ping] = []
    for text, fragmented in said:
        if fragmented:
            events += [TextMessage(text[:5], message_finished=False), Ping(b"p"), TextMessage(text[5:])]
        else:
            events += [Ping(), TextMessage(text)]
    assert read(written(*events), cuts) == [text for text, _ in said]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_noise_raises_nothing_and_keeps_little(noise: bytes, cuts: list[int]) -> None:
    reader = FrameReader()
    places = sorted({0, len(noise), *(cut % (len(noise) + 1) for cut in cuts)})
    for start, stop in pairwise(places):
        reader.split_untrusted(noise[start:stop])
    assert len(reader._tail) <= MAX_WAITED


def test_a_large_frame_goes_to_the_parser_as_it_comes() -> None:
    wire = written(TextMessage("y" * (MAX_WAITED + 1)))
    reader = FrameReader()
    parts = reader.split_untrusted(wire[:1000]) + reader.split_untrusted(wire[1000:])
    assert [bytes(part) for part in parts if isinstance(part, memoryview)] == [wire[:1000], wire[1000:]]


def test_a_frame_of_ours_is_one_that_a_server_reads() -> None:
    for size in (0, 125, 126, 65_535, 65_536):
        server = Connection(ConnectionType.SERVER)
        server.receive_data(text_frame(b"z" * size))
        assert (
            "".join(event.data for event in server.events() if isinstance(event, TextMessage)) == "z" * size
        )
