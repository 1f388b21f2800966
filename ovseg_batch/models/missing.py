"""The error for missing weights. It lists all of them, their sizes, and the command that fetches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovseg_batch.errors import OvsegError
from ovseg_batch.units import size


@dataclass(frozen=True, slots=True)
class Missing:
    """A model whose files are not on this machine.

    Attributes:
        name: argument of `models fetch`.
        what: kind of the missing files, such as `CLIP weights`.
        size: bytes of the download, or None where unknown before the download.
        licence: of the weights.
        gated: whether the hub requires that its licence is accepted there before a download.
        alternative: another way to provide the files, as a clause after "or".
    """

    name: str
    what: str
    size: int | None = None
    licence: str = ""
    gated: bool = False
    alternative: str = ""

    def details(self) -> str:
        """Return the kind, the size and the licence."""
        download = "size unknown until fetched" if self.size is None else f"about {size(self.size)}"
        parts = (self.what, download, self.licence, "gated: needs a token of the hub" if self.gated else "")
        return ", ".join(part for part in parts if part)


class MissingModels(OvsegError):
    """Weights are not on this machine. The message lists all of them and ends with the command that fetches them."""

    def __init__(self, missing: Sequence[Missing]) -> None:
        super().__init__(missing)
        self.missing = tuple({one.name: one for one in missing}.values())

    def __str__(self) -> str:
        command = f"`ovseg-batch models fetch {' '.join(one.name for one in self.missing)}`"
        if len(self.missing) == 1:
            [one] = self.missing
            other = f", or {one.alternative}" if one.alternative else ""
            return f"{one.name} is not on this machine ({one.details()}). Fetch it with {command}{other}."
        width = max(len(one.name) for one in self.missing)
        table = "".join(f"\n  {one.name.ljust(width)}  {one.details()}" for one in self.missing)
        known = [one.size for one in self.missing if one.size is not None]
        total = f" ({size(sum(known))})" if len(known) == len(self.missing) else ""
        return f"{len(self.missing)} models are not on this machine:{table}\nFetch them{total} with {command}."
