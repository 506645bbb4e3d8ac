"""Options that several commands share, and lists and ranges in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from core_utils import cli
from core_utils.errors import UserError
from diffract.units import metres

if TYPE_CHECKING:
    from diffract.designs import Design
    from diffract.reliefs import Material

Lengths = Annotated[str, tyro.conf.arg(metavar="LIST|START:STOP:STEP")]
MOST = 1000


@dataclass(frozen=True, kw_only=True)
class Designed(cli.Configured):
    """Options that name a design."""

    preset: Literal["luo2022", "mini"] | None = None  # the paper's design or its miniature, instead of --config
    seed: int | None = None  # decides everything random

    def design(self) -> Design:
        """The design that the options describe."""
        from diffract.designs import Design, preset_file

        if self.preset is not None and self.config is not None:
            raise UserError("--preset and --config exclude each other")
        file = preset_file(self.preset) if self.preset is not None else None
        return self.settings(Design, file=file, seed=self.seed)


def numbers(name: str, text: str, wavelength: float | None = None) -> list[float]:
    """`1,2,3` or `start:stop:step`, ends included; lengths in metres where a wavelength is given.

    Raises:
        UserError: something else, or more than a thousand values.
    """
    colon = ":" in text
    try:
        values = [
            float(part) if wavelength is None else metres(name, part.strip(), wavelength, zero=True)
            for part in text.split(":" if colon else ",")
        ]
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} {text!r} is no list of numbers", "write 1,2,3 or start:stop:step") from None
    if not colon:
        return values
    if len(values) != 3 or values[2] <= 0 or values[1] < values[0]:
        raise UserError(f"{name} {text!r} is no range", "write start:stop:step with a positive step")
    start, stop, step = values
    count = int(np.floor((stop - start) / step + 1e-9)) + 1
    if count > MOST:
        raise UserError(f"{name} {text!r} holds {count} values, more than {MOST}")
    return [start + i * step for i in range(count)]


def material_of(text: str) -> Material:
    """`n=1.72,k=0.03` as a material.

    Raises:
        UserError: another form.
    """
    from diffract.reliefs import Material

    try:
        facts = {key.strip(): float(value) for key, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError:
        facts = {}
    if "n" not in facts or facts.keys() - {"n", "k"}:
        raise UserError(f"--material {text!r} is no material", "write n=1.72 or n=1.72,k=0.03")
    return Material(facts["n"], facts.get("k", 0.0))
