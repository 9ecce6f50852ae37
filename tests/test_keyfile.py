"""The key file: what is read, when it is taken over, how it is written, and what is never told of it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from voicegate import logs
from voicegate.config import KeysConfig, LogConfig
from voicegate.keyfile import (
    KeyFile,
    KeyFileError,
    configured_secrets,
    edit,
    entries_of,
    read_key_file,
    watch_key_file,
    write_key_file,
)
from voicegate.proto.keys import ClusterKeys

A, B, C = ("0:" + "a" * 32, "1:" + "b" * 32, "2:" + "c" * 32)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.configure(LogConfig(format="json"), stream)
    yield stream
    logs.configure(LogConfig())


def told(log: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_lines_comments_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n  {B}  \n# before\n{A}\n")
    assert configured_secrets(KeysConfig(file=str(path))) == (B, A)
    assert configured_secrets(KeysConfig(secrets=(A,))) == (A,)
    assert ClusterKeys.parse(configured_secrets(KeysConfig(file=str(path)))).link_id == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read .*No such file"),
        (b"", "there is no secret"),
        (b"# none yet\n", "there is no secret"),
        (b"0:tooshortbutsecret\n", "needs at least 32"),
        (f"{A}\n{A}\n".encode(), "twice"),
        (b"\xff\xfe\x00", "is not text"),
        (b"#" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyFileError, match=words) as caught:
        read_key_file(str(path))
    assert "aaaa" not in str(caught.value) and "butsecret" not in str(caught.value)


def test_a_directory_is_explained(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="Is a directory"):
        read_key_file(str(tmp_path))


def test_a_change_is_taken_when_it_was_seen_twice(tmp_path: Path, log: io.StringIO) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{A}\n")
    keys = ClusterKeys.parse([A])
    file = KeyFile(str(path), keys)
    file.poll()
    file.poll()
    first = keys.marks
    assert not told(log), "nothing changed"
    path.write_text(f"{B}\n{A}\n")
    file.poll()
    assert keys.marks == first, "it might be half of what is being written"
    file.poll()
    assert [mark[0] for mark in keys.marks] == ["1", "0"] and keys.link_id == 1
    [line] = told(log)
    assert line["mints"] == keys.marks[0] and line["opens"] == list(keys.marks)
    assert "aaaa" not in log.getvalue() and "bbbb" not in log.getvalue()


def test_a_bad_file_is_told_once_and_the_last_good_secrets_stay(tmp_path: Path, log: io.StringIO) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{A}\n")
    keys = ClusterKeys.parse([A])
    file = KeyFile(str(path), keys)
    for content in ("0:short\n", None, f"{A}\n", "0:short\n"):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        for _ in range(5):
            file.poll()
        assert keys.link_id == 0 and len(keys.marks) == 1
    events = [line["event"] for line in told(log)]
    assert len(events) == 3 and all("the last good secrets stay in use" in event for event in events)
    assert "No such file" in events[1]


def test_another_secret_under_a_known_id_is_told(tmp_path: Path, log: io.StringIO) -> None:
    path = tmp_path / "keys"
    path.write_text("0:" + "z" * 32 + "\n")
    keys = ClusterKeys.parse([A])
    file = KeyFile(str(path), keys)
    file.poll()
    file.poll()
    assert any("key id 0 has another secret now" in line["event"] for line in told(log))


def test_the_watch_sees_a_mounted_secret_change_its_links(tmp_path: Path) -> None:
    """Kubernetes: keys -> ..data/keys, ..data -> a directory that is swapped by a rename."""
    for name, text in (("one", f"{A}\n"), ("two", f"{B}\n{A}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(text)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = ClusterKeys.parse([A])

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_key_file, str(tmp_path / "keys"), keys)
            await trio.sleep(5)
            assert len(keys.marks) == 1
            (tmp_path / "..new").symlink_to("two")
            os.rename(tmp_path / "..new", tmp_path / "..data")
            await trio.sleep(2)
            assert keys.link_id == 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.1))


def test_writing_keeps_rights_and_comments_and_refuses_a_race(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_key_file(str(path), f"{A}\n", instead_of="")
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(f"# ours\n{A}\n")
    path.chmod(0o640)
    text = path.read_text()
    write_key_file(str(path), edit(text, [B, A]), instead_of=text)
    assert path.read_text() == f"# ours\n{B}\n{A}\n" and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(KeyFileError, match="changed by somebody else"):
        write_key_file(str(path), f"{C}\n", instead_of=text)
    with pytest.raises(KeyFileError, match=r"cannot write .*/nowhere/keys: .*voicegate keys check"):
        write_key_file(str(tmp_path / "nowhere" / "keys"), f"{C}\n", instead_of="")
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys"], "nothing is left behind"


@given(
    lines=st.lists(st.sampled_from(["", "# note", "  # note 2", A, B, C])),
    entries=st.lists(st.sampled_from([A, B, C]), unique=True),
)
def test_an_edit_has_the_entries_and_every_comment(lines: list[str], entries: list[str]) -> None:
    edited = edit("\n".join(lines), entries)
    assert list(entries_of(edited)) == entries
    assert edited.count("#") == sum("#" in line for line in lines)
