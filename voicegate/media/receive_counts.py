"""What a call's way in has counted: part of the call's status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ReceiveCounts:
    """Counters since the start. All `*_samples` are of the 24 kHz output."""

    received: int = 0
    """Packets pushed."""
    played: int = 0
    """Frames decoded, those of redundant blocks included."""
    reordered: int = 0
    """Packets that closed a gap in time."""
    lost: int = 0
    """Packets given up."""
    late: int = 0
    duplicate: int = 0
    """Packets whose sound was there already, be it from redundancy."""
    recovered_red: int = 0
    """Frames decoded from redundant blocks (RFC 2198)."""
    corrupt: int = 0
    """Payloads the codec refused, and RED payloads that lie."""
    unplaced_red: int = 0
    """Redundant blocks of another payload type, or that fit nowhere, met while a packet was missing."""
    skipped: int = 0
    """Packets without audio of ours: another payload type, or an empty payload."""
    comfort_noise: int = 0
    """Packets of RFC 3389."""
    telephone_events: int = 0
    """Packets of RFC 4733."""
    stray: int = 0
    """Packets of another stream, or far out of sequence, that nothing followed."""
    resyncs: int = 0
    """Sequence jumps and SSRC changes that were believed."""
    clock_jumps: int = 0
    """Timestamp leaps that real time does not bear out."""
    flooded: int = 0
    """Packets refused because they carry more audio than time has passed."""
    held_overflow: int = 0
    """Gaps given up because MAX_HELD packets waited."""
    decoded_samples: int = 0
    concealed_samples: int = 0
    recovered_red_samples: int = 0
    """From redundant blocks; part of `decoded_samples`."""
    recovered_fec_samples: int = 0
    """From Opus' in-band FEC."""
    silence_samples: int = 0
    """The client's pauses, and losses too long to conceal."""
    live_silence_samples: int = 0
    """The part of `silence_samples` that was given out while the pause lasted."""
    repaid_samples: int = 0
    """Silence left out, because as much had been given out before sound of that time came late."""
    omitted_samples: int = 0
    """Silence that should have been inserted but was beyond MAX_SILENCE or the allowance."""
    unread_samples: int = 0
    """Dropped because nobody polled."""
