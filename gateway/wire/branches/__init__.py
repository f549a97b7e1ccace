"""Requests for forks and replays, and comparisons of turns."""
