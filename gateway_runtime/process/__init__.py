"""Packages that a server process loads, and memory that it returns."""
