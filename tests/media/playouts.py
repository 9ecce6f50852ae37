"""A playout driven on virtual time."""

from __future__ import annotations

from voicegate.media.playout import Frame, Playout

START = 1000.0


def run(playout: Playout, until: float) -> list[tuple[float, Frame]]:
    """Fire the timer exactly when it is due, up to `until`."""
    sent: list[tuple[float, Frame]] = []
    while (deadline := playout.next_deadline()) is not None and deadline <= until:
        playout.handle_timeout(deadline)
        while (frame := playout.poll_frame()) is not None:
            sent.append((deadline, frame))
    return sent
