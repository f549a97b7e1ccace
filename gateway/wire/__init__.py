"""Wire formats: chat requests into turn requests, events into bytes."""
