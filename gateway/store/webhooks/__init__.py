"""The queue of webhook messages."""
