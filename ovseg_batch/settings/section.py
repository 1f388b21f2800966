"""The base class of all sections of the settings."""

from __future__ import annotations

import errno
import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def usable_path(path: str) -> str:
    """Return a path unchanged, whether something is there or not.

    Raises:
        ValueError: no file can have that path.
    """
    try:
        os.lstat(path)
    except ValueError as error:
        raise ValueError(f"cannot be a path: {error}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"cannot be a path: it has {len(path)} characters") from None
    return path


PathText = Annotated[str, AfterValidator(usable_path)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A part of the settings. The docstring below a field is its meaning in `ovseg-batch settings` and the docs."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Execution(Section):
    """Settings that decide how a result is computed, and not what it is. No fingerprint of a stage holds them."""
