"""Errors that a person at a terminal can fix."""


class ConfigError(Exception):
    """A setting cannot be used. `str()` is for the terminal: a line for each broken value, without secrets."""


class EmbeddedPostgresError(Exception):
    """The embedded Postgres could not be started. `str()` is one line for the terminal."""
