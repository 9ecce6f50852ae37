"""How good are the plug-ins of a turn machine? Measured on sound whose pauses, ends and overlaps are known.

    manifest ──► recordings, 24 kHz, with the voice activity of each frame
                      │
                      ├─► turns: the machine with one judge, at every operating point ──► waits, false cut-ins
                      └─► overlaps: the machine with one policy while an agent speaks ──► pauses, stops
                                                                     └─► a table, JSON, a plot

The machine, the voice activity, the judge and the policy are those of a call. Time is the recordings' own:
nothing here looks at a clock, and the same files give the same figures on any machine.
"""
