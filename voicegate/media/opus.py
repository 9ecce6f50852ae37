"""Opus (RFC 6716) at 24 kHz mono, by libopus itself.

PyAV's Opus decoder can neither conceal a lost packet nor use in-band FEC, and it always works at 48 kHz. The
libopus inside PyAV's wheel does all three, so it is called through ctypes, without importing PyAV.

The codec state lives in a buffer that Python owns (`opus_*_get_size` and `opus_*_init`), so that there is
nothing to leak: `close` drops it, and so does the end of the object.

Measured (libopus 1.6.1, 20-ms frames of a voice-like signal, 32 kbit/s, best of seven on one core of a shared
2-core machine; microseconds with ctypes' own cost):

    application           complexity   encode   decode   look-ahead
    VOIP (SILK, hybrid)        5         190      36       6.5 ms
    AUDIO                      5          46      20       6.5 ms
    AUDIO                      9         198      30       6.5 ms
    RESTRICTED_LOWDELAY        4          37      21       2.5 ms
    RESTRICTED_LOWDELAY        5          47      21       2.5 ms
    RESTRICTED_LOWDELAY        9          66      24       2.5 ms

So the default is RESTRICTED_LOWDELAY: the same CELT layer as AUDIO, 4 ms sooner. Its complexity is 1, by what
that costs and does to five voices of espeak-ng (segmental SNR; log-spectral distance; noise in 2.5 ms against
the speech within 2.5 ms, its 95th percentile; one run, the machine less busy than above):

    complexity   encode   segmental SNR   log-spectral distance   noise before an onset
        5        32.3     12.80 dB        3.17 dB                 -0.07 dB
        4        23.7     12.27           3.20                    -0.69
        2        21.9     12.21           3.22                    -0.70
        1        20.0     12.09           3.31                    -0.69
        0        15.5     12.47           2.73                     5.69

Complexity 0 does not look for transients, and a plosive is heard before it is said. The default cannot
send in-band FEC, which only the SILK and hybrid modes have: those are for a client that reports loss. With
10 % expected, same signal and machine, a run in which the default took 24 us:

    VOIP at complexity 4: 123 us, hybrid      2: 93 us, hybrid      1: 44 us, SILK      0: 43 us, SILK

So FEC is VOIP at complexity 1: speech up to 8 kHz, for twice the time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final

from voicegate.media.codec import CLOCK_RATES, FRAME_BYTES, FRAME_SAMPLES, PCM_RATE
from voicegate.media.sound import PCM
from voicegate.proto.errors import BadPacket

MAX_SAMPLES: Final = PCM_RATE * 120 // 1000
"""The longest packet, 120 ms: RFC 6716 section 3.2.5, requirement R5."""
MAX_DECODED_PAYLOAD: Final = 1500
"""No datagram of a call carries more (Ethernet MTU); six full frames of 1275 bytes could never arrive."""
_MAX_ENCODED_PAYLOAD = 1275
"""The longest frame: RFC 6716 section 3.4, requirement R2."""
_PLC_STEP = PCM_RATE * 25 // 10_000
"""libopus conceals in whole multiples of 2.5 ms."""

_NEEDED_SYMBOLS = (
    "opus_get_version_string",
    "opus_strerror",
    "opus_encoder_get_size",
    "opus_encoder_init",
    "opus_encode",
    "opus_encoder_ctl",
    "opus_decoder_get_size",
    "opus_decoder_init",
    "opus_decode",
    "opus_packet_get_nb_samples",
    "opus_packet_get_samples_per_frame",
    "opus_packet_has_lbrr",
)


class Application(IntEnum):
    """OPUS_APPLICATION_* of opus_defines.h."""

    VOIP = 2048
    AUDIO = 2049
    RESTRICTED_LOWDELAY = 2051


class _Request(IntEnum):
    """OPUS_SET_*_REQUEST of opus_defines.h."""

    BITRATE = 4002
    COMPLEXITY = 4010
    INBAND_FEC = 4012
    PACKET_LOSS_PERC = 4014


class OpusUnavailable(RuntimeError):
    """No usable libopus on this machine. The message tells a person what to do."""


class OpusDecoder:
    """One Opus stream to 24 kHz mono PCM. Stereo packets are folded to mono by libopus."""

    clock_rate = CLOCK_RATES["opus"]
    sound = PCM
    dtx_bytes = 2
    """libopus' own rule: a packet of "only one byte (or two)" need not be sent (opus_encode in opus.h)."""

    def __init__(self) -> None:
        lib = library()
        self._state = ctypes.create_string_buffer(lib.opus_decoder_get_size(1))
        self._address = ctypes.addressof(self._state)
        _check(lib.opus_decoder_init(self._address, PCM_RATE, 1))
        self._out = ctypes.create_string_buffer(2 * MAX_SAMPLES)
        self._pcm = memoryview(self._out)
        self._decode = lib.opus_decode

    def decode(self, payload: bytes) -> bytes:
        """PCM of one packet of the network, 2.5 to 120 ms. Raises BadPacket."""
        if not payload:  # to libopus an empty packet would mean "conceal"
            raise BadPacket("opus_empty")
        if len(payload) > MAX_DECODED_PAYLOAD:
            raise BadPacket("opus_oversized")
        samples = self._decode(self._address, payload, len(payload), self._out, MAX_SAMPLES, 0)
        if samples < 0:
            raise BadPacket("opus_corrupt")
        return self._pcm[: 2 * samples].tobytes()

    def duration(self, payload: bytes) -> int:
        """How many samples `decode` makes of this payload, by its first two bytes; 0 when it is not one."""
        if not 0 < len(payload) <= MAX_DECODED_PAYLOAD:
            return 0
        return max(0, int(library().opus_packet_get_nb_samples(payload, len(payload), PCM_RATE)))

    def conceal(self, samples: int) -> bytes:
        """Exactly `samples` samples of concealment; what is left over from 2.5-ms steps is silence."""
        parts = []
        left = samples - samples % _PLC_STEP
        while left:
            size = min(left, MAX_SAMPLES)
            done = self._decode(self._address, None, 0, self._out, size, 0)
            assert done == size, "libopus conceals whole steps from any state, from the first one silence"
            parts.append(self._pcm[: 2 * size].tobytes())
            left -= size
        parts.append(bytes(2 * (samples % _PLC_STEP)))
        return b"".join(parts)

    def fec_samples(self, payload: bytes) -> int:
        """The length of the low-bit-rate copy of the frame before (RFC 6716 section 2.1.7), or 0."""
        if not payload or library().opus_packet_has_lbrr(payload, len(payload)) != 1:
            return 0
        return int(library().opus_packet_get_samples_per_frame(payload, PCM_RATE))

    def decode_fec(self, payload: bytes, samples: int) -> bytes:
        """The `samples` samples before this packet, as many as `fec_samples` said. Raises BadPacket."""
        if self._decode(self._address, payload, len(payload), self._out, samples, 1) != samples:
            raise BadPacket("opus_corrupt")
        return self._pcm[: 2 * samples].tobytes()

    def close(self) -> None:
        self._pcm.release()
        del self._state, self._out, self._address


_FEC_COMPLEXITY = 1


class OpusEncoder:
    """20-ms frames of 24 kHz mono PCM to one Opus stream. `bitrate` is in bits a second."""

    clock_rate = CLOCK_RATES["opus"]

    def __init__(
        self,
        *,
        bitrate: int = 32_000,
        application: Application = Application.RESTRICTED_LOWDELAY,
        complexity: int = 1,
    ) -> None:
        lib = library()
        self._state = ctypes.create_string_buffer(lib.opus_encoder_get_size(1))
        self._address = ctypes.addressof(self._state)
        self._quiet_line = (application, complexity)
        self._expected_loss = 0
        self._out = ctypes.create_string_buffer(_MAX_ENCODED_PAYLOAD)
        self._payload = memoryview(self._out)
        self._encode = lib.opus_encode
        self._begin(application, complexity)
        self._set(_Request.BITRATE, bitrate)

    def encode(self, pcm: bytes) -> bytes:
        """The packet for exactly FRAME_BYTES of PCM."""
        assert len(pcm) == FRAME_BYTES, "libopus would read past the end of a shorter frame"
        length = self._encode(self._address, pcm, FRAME_SAMPLES, self._out, _MAX_ENCODED_PAYLOAD)
        assert length > 0, "libopus refuses no whole frame that has room"
        return self._payload[:length].tobytes()

    def expect_loss(self, percent: int) -> None:
        """Send in-band FEC for this much loss, 0 for none. Not heard of by RESTRICTED_LOWDELAY."""
        self._set(_Request.INBAND_FEC, 1 if percent else 0)
        self._set(_Request.PACKET_LOSS_PERC, percent)

    def adapt(self, bitrate: int, expected_loss: int) -> None:
        """From the next frame on: this bit rate, and in-band FEC where some loss is expected, in percent.

        FEC comes and goes with a new state in the same memory: libopus changes no application once a frame is
        encoded. The decoder blends the modes into each other (RFC 6716 section 4.5).
        """
        if bool(expected_loss) != bool(self._expected_loss):
            application, complexity = self._quiet_line
            if expected_loss:
                application, complexity = Application.VOIP, _FEC_COMPLEXITY
            self._begin(application, complexity)
        if expected_loss != self._expected_loss:
            self._expected_loss = expected_loss
            self.expect_loss(expected_loss)
        self._set(_Request.BITRATE, bitrate)

    def close(self) -> None:
        self._payload.release()
        del self._state, self._out, self._address

    def _begin(self, application: Application, complexity: int) -> None:
        _check(library().opus_encoder_init(self._address, PCM_RATE, 1, application))
        self._set(_Request.COMPLEXITY, complexity)

    def _set(self, request: _Request, value: int) -> None:
        # A variadic C function: the value must be a C int and stay out of argtypes.
        _check(library().opus_encoder_ctl(self._address, request, ctypes.c_int(value)))


def opus_version() -> str:
    """What libopus says of itself, such as "libopus 1.6.1". Raises OpusUnavailable."""
    return str(library().opus_get_version_string().decode())


@functools.cache
def library() -> ctypes.CDLL:
    """libopus, loaded once in a process. Raises OpusUnavailable."""
    for path in _candidates():
        try:
            lib = ctypes.CDLL(path)
        except OSError:  # for another architecture, or a library of its own missing
            continue
        if all(hasattr(lib, symbol) for symbol in _NEEDED_SYMBOLS):
            return _declare(lib)
    raise OpusUnavailable(
        "libopus 1.4 or newer was not found. Install PyAV as a wheel, which brings it "
        "(pip install --only-binary av av), or install the system's libopus."
    )


def _candidates() -> Iterator[str]:
    """Where libopus may be: beside or inside the PyAV package as its wheels have it, then the system's."""
    spec = importlib.util.find_spec("av")  # finds, without importing
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        for folder in (package.parent / "av.libs", package / ".dylibs"):
            yield from sorted(str(path) for path in folder.glob("libopus*"))
    system = ctypes.util.find_library("opus")
    if system is not None:
        yield system


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    """The signatures of opus.h, so that ctypes converts fast and refuses wrong types."""
    pointer, c_int, data = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    lib.opus_get_version_string.argtypes, lib.opus_get_version_string.restype = [], data
    lib.opus_strerror.argtypes, lib.opus_strerror.restype = [c_int], data
    lib.opus_encoder_get_size.argtypes = [c_int]
    lib.opus_encoder_init.argtypes = [pointer, c_int, c_int, c_int]
    lib.opus_encode.argtypes = [pointer, data, c_int, pointer, c_int]
    lib.opus_encoder_ctl.argtypes = [pointer, c_int]
    lib.opus_decoder_get_size.argtypes = [c_int]
    lib.opus_decoder_init.argtypes = [pointer, c_int, c_int]
    lib.opus_decode.argtypes = [pointer, data, c_int, pointer, c_int, c_int]
    lib.opus_packet_get_nb_samples.argtypes = [data, c_int, c_int]
    lib.opus_packet_get_samples_per_frame.argtypes = [data, c_int]
    lib.opus_packet_has_lbrr.argtypes = [data, c_int]
    return lib


def _check(result: int) -> None:
    """Set-up calls with our own arguments cannot fail unless the library is not what it says."""
    if result != 0:
        raise OpusUnavailable(f"libopus refuses our settings: {library().opus_strerror(result).decode()}")
