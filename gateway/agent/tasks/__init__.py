"""Turns that wait for tasks of servers."""
