"""Calls that servers run as tasks."""
