"""Errors of defined tools, with texts for admins or models."""


class DefinitionError(Exception):
    """A request at `/definitions` that is refused: status, code, message, field."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class DefinitionInvalid(DefinitionError):
    """A field of a definition that is not valid."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(422, "invalid_request", f"{field}: {problem}", field)


class DefinitionNotFound(DefinitionError):
    """There is no definition of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(404, "not_found", f"There is no definition {name[:100]!r}.", "name")


class DefinitionConflict(DefinitionError):
    """The name is taken, or the definition has another revision."""

    def __init__(self, message: str, param: str = "name") -> None:
        super().__init__(409, "conflict", message, param)


class CallFailed(Exception):
    """A failed call of a defined tool.

    `str()` is for the model.
    """
