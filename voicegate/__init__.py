"""voicegate: a WebRTC edge in front of any speech model that speaks the OpenAI Realtime WebSocket protocol.

Five words explain the system:

* **call**: one client talking to one agent. One to one, never a room.
* **ticket**: the server's ICE ufrag: an encrypted, authenticated routing hint that names the transceiver.
* **link**: the internal UDP leg between relay and transceiver. Each frame on it carries its client's address.
* **flow**: a relay's short-lived note that a client address belongs to a transceiver.
* **agent**: whatever is upstream: a Realtime WebSocket server, or the embedded parrot.

A packet's way: browser -> relay (opens the ticket, notes the flow) -> link -> transceiver (ICE, DTLS, SRTP,
Opus) -> agent, and back. `voicegate.proto` and `voicegate.media` are pure: bytes and `now` in, bytes and
events out. `voicegate.roles` holds the three roles, each a pure core in a Trio shell.
"""

__version__ = "0.1.0"
