"""A role on every CPU: a supervisor, the processes it keeps at work, and the one that forks them.

    supervisor ── control socket each ──► worker      serves one slot
        │  fork, kill                     worker
        └────────► zygote ── forks ──►    spare       warm, and gets the first slot that is empty

`zygote` makes processes, `slots` has the rules, `messages` are what the two sides say, `supervisor` and
`worker` are the sides. What a worker does in its slot is the role's business.
"""
