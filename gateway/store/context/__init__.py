"""Reads what a turn needs of the turns before it."""
