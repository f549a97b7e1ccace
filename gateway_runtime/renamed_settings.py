"""Finds environment variables that still use an old name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values


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
