"""Checks the names of models in requests that are passed on."""

_MAX_LENGTH = 200


def is_model_name(value: object) -> bool:
    """Return whether a value can be the name of a model.

    PostgreSQL does not store NUL: a request with such a name would run, but not count.
    """
    return isinstance(value, str) and 1 <= len(value) <= _MAX_LENGTH and "\0" not in value
