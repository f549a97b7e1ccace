"""Measures the gateway beside what else could stand in its place. See README.md."""
