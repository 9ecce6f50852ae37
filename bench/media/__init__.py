"""What a call costs and how well it sounds: voicegate's media path beside an aiortc echo server.

    make bench-media                              (or: python -m bench.media.run --only cpu,smooth)
    make bench-media BENCH="--only uplink --seconds 20"

The transceiver has one CPU to itself, and so has aiortc when its turn comes; clients, relay, signaling and
agent share another one. `contenders` starts the two, `calls` makes the calls and notes what they sent and
heard, `talking`, `answering`, `networks` and `setups` measure, `measures` makes figures of notes, `floors`
measures what no program can do without, and `run` prints the table. `soak` is for hours.
"""
