"""The upstream side: the Realtime WebSocket client of a call, and the parrot, an agent of our own."""
