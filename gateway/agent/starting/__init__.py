"""Decisions about a turn before it begins."""
