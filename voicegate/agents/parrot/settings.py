"""A session's settings as the Realtime API shapes them, with the parrot's defaults and what it refuses.

The parrot keeps and echoes what it has no use for (tools, instructions, a voice), refuses what it could
only pretend to (other audio formats, an idle timeout), and acts on turn detection, modalities and the
transcription switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from voicegate.agents.parrot.errors import Refused

_Count = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServerVad(_Shape, frozen=True, tag_field="type", tag="server_vad"):
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 300
    silence_duration_ms: Annotated[int, msgspec.Meta(ge=20, le=10_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None


class SemanticVad(_Shape, frozen=True, tag_field="type", tag="semantic_vad"):
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


TurnDetection = ServerVad | SemanticVad

SEMANTIC_SILENCE_MS: Final = {"low": 1200, "medium": 800, "auto": 800, "high": 400}
"""A parrot understands nothing, so eagerness can only choose how long it waits. Chosen around the 500 ms of
server_vad and far below the API's longest waits (8, 4 and 2 s), which are for speech that sounds
unfinished."""


class PcmFormat(_Shape, frozen=True, tag_field="type", tag="audio/pcm"):
    rate: Literal[24000] = 24000


class NoiseReduction(_Shape, frozen=True):
    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = None


class Transcription(_Shape, frozen=True):
    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = None
    keywords: list[str] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class AudioInput(_Shape, frozen=True):
    format: PcmFormat = PcmFormat()
    noise_reduction: NoiseReduction | None = None
    transcription: Transcription | None = None
    turn_detection: ServerVad | SemanticVad | None = ServerVad()


class VoiceId(_Shape, frozen=True):
    id: str


class AudioOutput(_Shape, frozen=True):
    format: PcmFormat = PcmFormat()
    voice: str | VoiceId = "parrot"
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=1.5)] = 1.0


class Audio(_Shape, frozen=True):
    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class FunctionTool(_Shape, frozen=True, tag_field="type", tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ChooseFunction(_Shape, frozen=True, tag_field="type", tag="function"):
    name: str


class Prompt(_Shape, frozen=True):
    id: str
    version: str | None = None
    variables: dict[str, str] | None = None


class Reasoning(_Shape, frozen=True):
    effort: _Effort | None = None


class Tracing(_Shape, frozen=True):
    group_id: str | None = None
    workflow_name: str | None = None
    metadata: dict[str, Any] | None = None


class TokenLimits(_Shape, frozen=True):
    post_instructions: Annotated[int, msgspec.Meta(ge=0)] | None = None


class RetentionRatio(_Shape, frozen=True, tag_field="type", tag="retention_ratio"):
    retention_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)]
    token_limits: TokenLimits | None = None


class Session(_Shape, frozen=True):
    """Everything a client can set, and what it is now."""

    type: Literal["realtime"] = "realtime"
    model: str = "parrot"
    output_modalities: Annotated[list[Literal["text", "audio"]], msgspec.Meta(min_length=1, max_length=2)] = (
        msgspec.field(default_factory=lambda: ["audio"])
    )
    instructions: str = "Say back what you hear."
    audio: Audio = Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None
    max_output_tokens: _Count | Literal["inf"] = "inf"
    parallel_tool_calls: bool | None = None
    prompt: Prompt | None = None
    reasoning: Reasoning | None = None
    tool_choice: Literal["auto", "none", "required"] | ChooseFunction = "auto"
    tools: list[FunctionTool] = []
    tracing: Literal["auto"] | Tracing | None = None
    truncation: Literal["auto", "disabled"] | RetentionRatio = "auto"


def updated(session: Session, change: Mapping[str, Any]) -> Session:
    """`session` with a `session.update` laid over it: only what it names changes. Raises Refused."""
    new = converted(_over(msgspec.to_builtins(session), change), Session, "session")
    assert isinstance(new, Session), "converted gives what it is asked for"
    return new


def converted(value: Any, shape: type[Any], name: str) -> Any:
    """`value` as `shape`, or Refused with the place of the field that does not fit."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        unknown = text.startswith("Object contains unknown field")
        raise Refused(
            "unknown_parameter" if unknown else "invalid_value", text, name + place.rstrip("`")
        ) from None


def _over(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in change.items():
        below = result.get(key)
        # An object that names another `type` is another thing: server_vad's numbers mean nothing to
        # semantic_vad.
        if (
            isinstance(below, Mapping)
            and isinstance(value, Mapping)
            and value.get("type", below.get("type")) == below.get("type")
        ):
            result[key] = _over(below, value)
        else:
            result[key] = value
    return result
