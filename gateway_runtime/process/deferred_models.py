"""Models of pydantic that are built at their first use.

See docs/adr/0016.
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager

from pydantic import BaseModel
from pydantic.warnings import UnsupportedFieldAttributeWarning


@contextmanager
def defer_models() -> Generator[None]:
    """Build the models that the block defines at their first use.

    Models of libraries get pydantic's setting only from `BaseModel`, which all of them inherit.
    """
    # FastAPI suppresses it while it defines the bodies of its routes, which are built later.
    warnings.simplefilter("ignore", UnsupportedFieldAttributeWarning)
    BaseModel.model_config["defer_build"] = True
    try:
        yield
    finally:
        del BaseModel.model_config["defer_build"]
