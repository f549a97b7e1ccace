"""Readers of turns: handles, listeners and windows of events."""
