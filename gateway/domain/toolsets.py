"""Named subsets of the tools, and the toolset of a caller."""

import re
from typing import Annotated, Literal, cast

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gateway.domain.errors import Forbidden
from gateway.domain.messages import Principal, ToolSpec

TOOLSET_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
SERVER_CARD = "server-card"
"""Last segment of the server card's path, which no toolset has."""
_GLOB_CHARACTERS = frozenset("*?[")
_MAX_GLOBS = 50
_OWN_TOOLS = frozenset({"ask_agent", "batch", "find_tools", "run_python"})
_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


def _reject_reserved(name: str) -> str:
    if name == SERVER_CARD:
        raise ValueError(f"the name {name!r} is that of the server card")
    return name


ToolsetName = Annotated[str, StringConstraints(pattern=TOOLSET_NAME), AfterValidator(_reject_reserved)]


def is_toolset_name(name: str) -> bool:
    return re.fullmatch(TOOLSET_NAME, name) is not None and name != SERVER_CARD


def is_mcp_path(path: str) -> bool:
    """Return whether a path is `/mcp` or a toolset's."""
    parent, _, name = path.rpartition("/")
    return path == "/mcp" or (parent == "/mcp" and is_toolset_name(name))


class ToolsetTool(BaseModel):
    """Tools of a toolset.

    `tool` is a glob over exposed names and `server/tool`. `name`, `title` and `description` replace those of one tool,
    which `tool` then names without wildcards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tool: _Pattern
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    title: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    description: Annotated[str, StringConstraints(min_length=1, max_length=4_000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _limit_fields(cls, data: object) -> object:
        if isinstance(data, dict) and len(cast("dict[object, object]", data)) > len(cls.model_fields):
            raise ValueError(f"an entry has no other fields than {', '.join(cls.model_fields)}")
        return cast(object, data)

    @model_validator(mode="after")
    def _validate_changes(self) -> "ToolsetTool":
        if self.name in _OWN_TOOLS:
            raise ValueError(f"the name {self.name!r} is one of the gateway's own tools")
        if self.is_glob and self.changes_definition:
            raise ValueError("an entry with wildcards cannot rename or describe a tool: name it")
        return self

    @property
    def is_glob(self) -> bool:
        """Whether the entry may match several tools."""
        return not _GLOB_CHARACTERS.isdisjoint(self.tool)

    @property
    def changes_definition(self) -> bool:
        """Whether the toolset shows the tool differently."""
        return any(value is not None for value in (self.name, self.title, self.description))


class ToolsetDefinition(BaseModel):
    """Content of a toolset.

    A plain string in `tools` is an entry without changes. `resources` are globs over `server/uri`, `prompts` over
    exposed names and `server/prompt`; without them, a toolset has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = Field(default="", max_length=2_000)
    tools: tuple[_Pattern | ToolsetTool, ...] = Field(max_length=500, fail_fast=True)
    resources: tuple[_Pattern, ...] = Field(default=(), max_length=_MAX_GLOBS, fail_fast=True)
    prompts: tuple[_Pattern, ...] = Field(default=(), max_length=_MAX_GLOBS, fail_fast=True)

    @model_validator(mode="after")
    def _validate_entries(self) -> "ToolsetDefinition":
        names = [entry.name for entry in self.entries if entry.name is not None]
        if len(names) != len(set(names)):
            raise ValueError("two tools have the same name")
        if sum(entry.is_glob for entry in self.entries) > _MAX_GLOBS:
            raise ValueError(f"more than {_MAX_GLOBS} entries have wildcards")
        return self

    @property
    def entries(self) -> tuple[ToolsetTool, ...]:
        """The tools, each as an object."""
        return tuple(ToolsetTool(tool=entry) if isinstance(entry, str) else entry for entry in self.tools)


class Toolset(msgspec.Struct, frozen=True):
    """A toolset, from the setting TOOLSETS or defined over the API."""

    name: str
    definition: ToolsetDefinition
    source: Literal["setting", "api"]


def bind_toolset(principal: Principal, name: str | None) -> Principal:
    """Return the principal limited to a toolset; None: as the credential says.

    Raises:
        Forbidden: the credential is bound to another toolset.
    """
    if name is None or name == principal.toolset:
        return principal
    if principal.toolset is not None:
        raise Forbidden(f"Your key is bound to the toolset {principal.toolset!r}.", param="toolset")
    return msgspec.structs.replace(principal, toolset=name)


def limit_to_own_turns(principal: Principal) -> Principal:
    """Return the principal as a reader of turns that it may change.

    A credential that is limited to some tools changes only what it started.
    """
    return principal if principal.can_use_all_tools else msgspec.structs.replace(principal, scopes=())


def was_called(spec: ToolSpec, name: str) -> bool:
    """Return whether a name outside of toolsets is, or was, a tool's."""
    return name in (spec.identity, *spec.former_names)
