"""The JSON of ChatKit: threads, their items, and events."""
