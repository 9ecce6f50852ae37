"""The parrot: a small but honest Realtime WebSocket server that answers each finished turn by saying it back."""
