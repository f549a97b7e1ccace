"""Turns malformed tool calls of a model into valid ones."""
