"""The load tool, `voicegate load`: many light WebRTC clients in one process, against any gateway.

A **client** is one call without I/O (`client`, with `offer` and `channel`); what it hears is judged by its
**reception** and added to the run's **figures**. A **talk** says what it speaks and when. The **driver** is
one thread with one socket a client and a wheel of 20 ms; the **impairment** loses, delays and reorders in
both directions. `run` starts and ends the calls, `report` makes the table and the JSON, `command` is the
command line.
"""
