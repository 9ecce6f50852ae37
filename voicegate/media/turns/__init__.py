"""Whose turn it is: when a person has finished, and when a person breaks in. Pure.

    microphone, 20-ms frames ──► VoiceActivity ──► Hop ─┐
                                                        ├─► TurnMachine ──► decisions
    what is in the air, 20-ms frames ──► level ─────────┘      │  ▲
                                                   Pause to TurnJudge, Verdict back
                                                   Overlap to InterruptionPolicy, Action back

Three plug-ins, each behind a protocol in `plugins`; third parties bring theirs by entry points. Time is `now`
in monotonic seconds; places in the microphone's line are samples at 24 kHz since the start of the call.
"""
