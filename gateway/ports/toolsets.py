"""Toolsets: found by name, stored and administered."""

from abc import abstractmethod
from typing import Protocol

from gateway.domain.messages import JsonObject
from gateway.domain.toolsets import Toolset, ToolsetDefinition


class ToolsetCatalog(Protocol):
    """The toolsets, the same on every worker."""

    @abstractmethod
    def find_toolset(self, name: str) -> Toolset | None: ...


class ToolsetRepository(Protocol):
    """Stores toolsets that were defined at run time.

    Each method raises `StorageUnavailable` if the database cannot be reached.
    """

    @abstractmethod
    async def list_toolsets(self) -> dict[str, JsonObject]:
        """Return the definitions by name."""
        ...

    @abstractmethod
    async def save_toolset(self, name: str, definition: JsonObject, *, is_new: bool, limit: int, by: str) -> None:
        """Create or replace a toolset, with its audit entry.

        Raises:
            Conflict: the new toolset exists already, or there are as many as the limit.
            ToolsetNotFound: the toolset to replace does not exist.
        """
        ...

    @abstractmethod
    async def delete_toolset(self, name: str, *, by: str) -> None:
        """Raises:
        ToolsetNotFound: there is no such toolset.
        """
        ...


class ToolsetAdmin(ToolsetCatalog, Protocol):
    """Lists and changes toolsets for every worker."""

    @abstractmethod
    def list_all(self) -> list[Toolset]:
        """Return the toolsets in the order of their names."""
        ...

    @abstractmethod
    def get_toolset(self, name: str) -> Toolset:
        """Raises:
        ToolsetNotFound: there is no such toolset.
        """
        ...

    @abstractmethod
    async def create_toolset(self, name: str, definition: ToolsetDefinition, *, by: str) -> None:
        """Raises:
        Conflict: the name is already used, or there are too many toolsets.
        """
        ...

    @abstractmethod
    async def replace_toolset(self, name: str, definition: ToolsetDefinition, *, by: str) -> None:
        """Raises:
        ToolsetNotFound: there is no such toolset.
        Conflict: a setting defines it.
        """
        ...

    @abstractmethod
    async def remove_toolset(self, name: str, *, by: str) -> None:
        """Raise the errors of `replace_toolset`."""
        ...
