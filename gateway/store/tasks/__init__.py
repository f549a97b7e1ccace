"""Waits of turns for tasks of servers."""
