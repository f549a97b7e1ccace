"""Wrappers around a toolbox, one duty each, for all callers."""
