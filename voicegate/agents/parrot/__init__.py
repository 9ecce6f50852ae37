"""The parrot: a small but honest Realtime server that answers each finished turn by saying it back."""
