"""Writes the events of turns, in commits that turns share."""
