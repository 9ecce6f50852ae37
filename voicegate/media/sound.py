"""How sound is written on its way between a client and its agent.

Nearly always as 24 kHz PCM. Only where both speak G.711 it stays what it is, from the packet to the agent's
event and back (`line_between`). Time is counted in samples of 24 kHz in either case: a byte of PCM is half of
one, a byte of G.711 three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from voicegate.media.codec import FRAME_SECONDS, PCM_RATE
from voicegate.proto.realtime import Formats


class Sound(NamedTuple):
    """Mono, in whole samples. Made by `_sound`: what follows from the first three is asked for with each
    packet."""

    type: str
    """As the Realtime API names it."""
    rate: int
    """Hz."""
    silence: bytes
    """One sample of it; its length is that of all."""
    sample_bytes: int
    bytes_per_second: int
    samples_per_byte: float
    """Samples of 24 kHz that a byte lasts for."""

    @property
    def frame_bytes(self) -> int:
        """Of 20 ms."""
        return round(self.rate * FRAME_SECONDS) * self.sample_bytes

    def samples(self, data: bytes | bytearray) -> int:
        """How many samples of 24 kHz it lasts for."""
        return int(len(data) * self.samples_per_byte)

    def silent(self, samples: int) -> bytes:
        """Silence of so many samples of 24 kHz."""
        return self.silence * (samples * self.rate // PCM_RATE)


def _sound(type: str, rate: int, silence: bytes) -> Sound:
    bytes_per_second = rate * len(silence)
    return Sound(type, rate, silence, len(silence), bytes_per_second, PCM_RATE / bytes_per_second)


PCM: Final = _sound("audio/pcm", PCM_RATE, b"\0\0")
"""s16le."""
PCMU: Final = _sound("audio/pcmu", 8_000, b"\xff")
PCMA: Final = _sound("audio/pcma", 8_000, b"\xd5")
"""ITU-T G.711. Silence is the code of the smallest positive value, 0 in PCMU and 8 in PCMA."""

_G711: Final = {"PCMU": PCMU, "PCMA": PCMA}


class Line(NamedTuple):
    """What runs between a call's media and its agent."""

    heard: Sound = PCM
    """From the client."""
    said: Sound = PCM
    """To it."""


PCM_LINE: Final = Line()


def sound_of(format: Mapping[str, object]) -> Sound:
    """A format of the Realtime API. KeyError for one that is not in it."""
    if format["type"] == PCM.type:
        rate = format.get("rate", PCM_RATE)
        assert isinstance(rate, int), "checked with the configuration"
        return _sound(PCM.type, rate, PCM.silence)
    return {each.type: each for each in _G711.values()}[str(format["type"])]


def line_between(codec: str, agent: Formats) -> Line:
    """For a client with this codec, by its name in SDP, and an agent that hears "input" and speaks "output".

    An agent of the other law gets the client's all the same: to convert it is the agent's side's, in one
    step.
    """
    own = _G711.get(codec, PCM)
    heard, said = (own if sound_of(agent[side]) in _G711.values() else PCM for side in ("input", "output"))
    return Line(heard, said)
