"""Anthropic-compatible routes."""
