"""Logs: one line per event, and nothing in it that must not leave the process."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from voicegate import logs
from voicegate.config import LogConfig

HUSH = "hush-1234567890"
CLIENT = "198.51.100.77"


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def written(log: Any, **config: Any) -> str:
    stream = io.StringIO()
    logs.configure(LogConfig(**config), stream)
    log()
    return stream.getvalue()


def say(**fields: Any) -> Any:
    return lambda: logs.get_logger("test").info("event", **fields)


@pytest.mark.parametrize(
    "name",
    ["secret", "api_key", "keys", "password", "ice_pwd", "Authorization", "cookie", "token", "ufrag",
     "ticket", "sdp", "offer_sdp", "credentials"],
)  # fmt: skip
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_secret_by_its_name(name: str, format: str) -> None:
    values: list[Any] = [HUSH, HUSH.encode(), [HUSH], {"a": HUSH}, 1234567890, (HUSH, {"b": [HUSH]})]
    for value in values:
        for fields in ({name: value}, {"headers": {name: value}}, {"a": [{"b": {name: value}}]}):
            text = written(say(**fields), format=format)
            assert "event" in text and "[redacted]" in text
            assert HUSH not in text and HUSH.encode().hex() not in text and "1234567890" not in text


@pytest.mark.parametrize(
    "text",
    [f"Bearer {HUSH}", f"key ek_{HUSH}", f"sk-{HUSH}", f"a=ice-pwd:{HUSH}", f"a=ice-ufrag:{HUSH}",
     f"redis://user:{HUSH}@host:1", f"wss://:{HUSH}@host"],
)  # fmt: skip
def test_no_secret_in_free_text(text: str) -> None:
    def foreign() -> None:
        logging.getLogger("library").error("failed with %s", text)

    def traceback() -> None:
        try:
            raise RuntimeError(text)
        except RuntimeError:
            logs.get_logger("test").exception("failed")

    for log in (say(reason=text), foreign, traceback, lambda: logs.get_logger("test").info(text)):
        out = written(log, format="json")
        assert out and HUSH not in out


@pytest.mark.parametrize(
    ("value", "short"),
    [
        (CLIENT, "198.51.100.x"),
        (f"{CLIENT}:5000", "198.51.100.x"),
        ((CLIENT, 5000), "198.51.100.x"),
        ((f"::ffff:{CLIENT}", 5000, 0, 0), "198.51.100.x"),
        (bytes([198, 51, 100, 77]) + b"\x13\x88", "198.51.100.x"),
        ("2001:db8:1:2::77", "2001:0db8:0001::x"),
        ("[2001:db8:1:2::77]:5000", "2001:0db8:0001::x"),
        ("somebody.example", "[redacted]"),
    ],
)
def test_client_addresses_are_cut(value: Any, short: str) -> None:
    line = json.loads(written(say(client=value, peer=value, remote_address=value), format="json"))
    assert {line["client"], line["peer"], line["remote_address"]} == {short}


def test_client_addresses_in_full_when_asked_for() -> None:
    packed = bytes([198, 51, 100, 77]) + b"\x13\x88"
    text = written(say(client=packed, peer=(CLIENT, 7)), format="json", client_addresses=True)
    assert (json.loads(text)["client"], json.loads(text)["peer"]) == (f"{CLIENT}:5000", f"{CLIENT}:7")


def test_libraries_log_through_us() -> None:
    def foreign() -> None:
        logging.getLogger("hypercorn.error").warning("lost %s at 12:30:11 (v1.2.3)", CLIENT)
        logging.getLogger("hypercorn.error").info("chatter")

    line = json.loads(written(foreign, format="json"))
    assert line["event"] == "lost 198.51.100.x at 12:30:11 (v1.2.3)"
    assert (line["logger"], line["level"]) == ("hypercorn.error", "warning")


def test_bound_fields_and_levels() -> None:
    def log() -> None:
        call = logs.get_logger("voicegate.x").bind(call="rtc_1")
        call.debug("unheard")
        call.info("heard", link="10.0.0.5:3500", key_id=2, ok=True, ratio=0.5, nothing=None, raw=b"ab")

    line = json.loads(written(log, format="json"))
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "heard", "level": "info", "logger": "voicegate.x", "call": "rtc_1", "link": "10.0.0.5:3500",
        "key_id": 2, "ok": True, "ratio": 0.5, "nothing": None, "raw": "6162",
    }  # fmt: skip


def test_json_off_a_terminal_and_readable_on_one() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    logs.configure(LogConfig(), terminal)
    logs.get_logger("test").info("event")
    assert "event" in terminal.getvalue() and not terminal.getvalue().startswith("{")
    assert json.loads(written(say()))["event"] == "event"


@given(st.text(), st.text())
def test_one_event_is_one_line_without_control_characters(event: str, value: str) -> None:
    for format in ("json", "console"):
        text = written(lambda: logs.get_logger("test").info(event, reason=value), format=format)
        assert text.endswith("\n") and text.count("\n") == 1
        assert all(char.isprintable() for char in text[:-1])


def test_long_and_deep_values_are_cut() -> None:
    deep: dict[str, Any] = {}
    for _ in range(1000):
        deep = {"a": deep}
    assert len(written(say(reason="x" * 100_000, more=deep), format="json")) < 10_000


def test_a_closed_log_ends_nothing() -> None:
    stream = io.StringIO()
    logs.configure(LogConfig(), stream)
    stream.close()
    logs.get_logger("test").info("event")
