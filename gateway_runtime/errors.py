"""Errors that a person at a terminal can fix."""


class ConfigError(Exception):
    """Error of a setting that cannot be used.

    `str()` is for the terminal: a line for each broken value, without secrets.
    """


class EmbeddedPostgresError(Exception):
    """Error of an embedded Postgres that could not be started.

    `str()` is one line for the terminal.
    """
