"""Finds environment variables that still use an old name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

_OLD_PARENT_FD = "GATEWAY_LIFELINE"


@dataclass(frozen=True)
class RenamedSetting:
    """An old environment name in use, and the name that replaces it."""

    old_name: str
    new_name: str


def find_renamed_settings(renamed: Mapping[str, str], env_file: Path = Path(".env")) -> list[RenamedSetting]:
    """Return the old names that are set without the new ones.

    The environment and `env_file` are searched.
    """
    values = {name.upper() for name, value in {**dotenv_values(env_file), **os.environ}.items() if value}
    return [RenamedSetting(old, new) for old, new in renamed.items() if old in values and new not in values]


def read_parent_fd(value: object) -> object:
    """Read `stdin` as file descriptor 0, and drop what 0.1.0 ignored.

    GATEWAY_PARENT_FD was GATEWAY_LIFELINE in version 0.1.0, which knew only the value `stdin`.
    """
    if value == "stdin":
        return 0
    is_ignored = isinstance(value, str) and find_renamed_settings({_OLD_PARENT_FD: "GATEWAY_PARENT_FD"})
    return None if is_ignored else value
