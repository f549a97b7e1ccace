"""Turns that consist of one tool call."""
