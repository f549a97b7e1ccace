"""Imports of packages without the optional packages that they would import too.

See docs/adr/0016.
"""

import importlib
import sys


def import_without(package: str, *optional: str) -> None:
    """Import a package as if optional packages were not installed.

    They can be imported afterwards. No effect on what is imported already.
    """
    hidden = [name for name in optional if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType] - documented: the import fails with ImportError
    try:
        importlib.import_module(package)
    finally:
        for name in hidden:
            del sys.modules[name]
