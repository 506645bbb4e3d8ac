"""Hardware profiles: what libraries and devices demand, as TOML files, and the schemes that cannot be.

The files lie in `profiles/` beside this module. Other packages add profiles by the entry-point group
`mqbench_lite.profiles`, each a `HardwareProfile` or the path of a TOML file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from core_utils.errors import UserError
from core_utils.files import write_atomically
from core_utils.settings import from_tree
from mqbench_lite.errors import ProfileError
from mqbench_lite.specs import HardwareProfile, QuantSpec

GROUP = "mqbench_lite.profiles"


@dataclass(frozen=True)
class Finding:
    """What a profile gets wrong.

    Attributes:
        field: of the profile, such as `weight.symmetric`.
        level: an `error` cannot run as asked; a `warning` runs, but not as one would think.
        text: what is wrong and what would be right.
    """

    field: str
    level: Literal["error", "warning"]
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.field}: {self.text}"


def get(name: str) -> HardwareProfile:
    """A profile by name, or from the TOML file of that path.

    Raises:
        ProfileError: there is none, naming the nearest, or it cannot be read.
    """
    if name.endswith(".toml"):
        return from_toml(Path(name))
    if name in _built_in():
        return _built_in()[name]
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _loaded(point)
    nearest = difflib.get_close_matches(name, names(), 1, 0.0)[0]
    raise ProfileError(f"there is no profile {name!r}", f"did you mean {nearest!r}? Known: {', '.join(names())}")


def names() -> tuple[str, ...]:
    """Names of all profiles: this package's, then other packages'."""
    own = tuple(_built_in())
    return own + tuple(sorted({point.name for point in entry_points(group=GROUP)} - set(own)))


def problems() -> tuple[str, ...]:
    """A line for each profile of another package that is not used, with the reason."""
    found = []
    for point in entry_points(group=GROUP):
        if point.name in _built_in():
            found.append(f"profile {point.name} ({point.value}): the name is taken")
            continue
        try:
            _loaded(point)
        except ProfileError as error:
            found.append(str(error))
    return tuple(found)


def from_toml(file: Path) -> HardwareProfile:
    """Reads a profile.

    Raises:
        ProfileError: it cannot be read, has an unknown key (naming the nearest), or a value that cannot be.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {file} cannot be read: {error}") from None
    return _parsed(text, str(file))


def to_toml(profile: HardwareProfile, file: Path | None = None) -> str:
    """A profile as TOML that `from_toml` reads; fields that are None are left out.

    Args:
        profile: any.
        file: where it is written, if anywhere.
    """
    tree = dataclasses.asdict(profile)
    tables = {name: tree.pop(name) for name in ("weight", "act")}
    edge = "" if tree["edge_bits"] is not None else "edge_bits = 0  # none\n"
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in tree.items() if value is not None) + edge
    for name, table in tables.items():
        text += f"\n[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    if file is not None:
        write_atomically(file, text)
    return text


def lint(profile: HardwareProfile) -> tuple[Finding, ...]:
    """Schemes that an engine cannot run, or runs otherwise than one would think."""
    return tuple(_findings(profile))


def check(profile: HardwareProfile) -> None:
    """Refuses a profile whose scheme is impossible.

    Raises:
        ProfileError: `lint` finds an error; the message names the field.
    """
    for finding in lint(profile):
        if finding.level == "error":
            raise ProfileError(f"profile {profile.name}: {finding.field}: {finding.text}")


_SYMMETRIC_WEIGHTS = {
    "onnxruntime": "its int8 kernels want weights with zero point 0",
    "openvino": "with asymmetric weights it runs every convolution in float",
    "executorch": "XNNPACK wants weights with zero point 0",
    "tensorrt": "TensorRT wants zero points of 0",
}


def _findings(profile: HardwareProfile) -> Iterator[Finding]:
    weight, act, engine = profile.weight, profile.act, profile.engine or _family(profile.name)
    if engine in _SYMMETRIC_WEIGHTS and not weight.symmetric:
        yield Finding("weight.symmetric", "error", f"{_SYMMETRIC_WEIGHTS[engine]}; set it to true")
    if weight.symmetric and weight.signed is not True:
        yield Finding("weight.signed", "error", "symmetric weights need a signed grid; set it to true")
    if weight.signed == "auto":
        yield Finding("weight.signed", "error", "only activations' signs are found by calibration; say true or false")
    if profile.executable and profile.engine is None:
        yield Finding("engine", "error", "an executable profile needs an engine")
    if profile.executable and act.signed == "auto":
        yield Finding("act.signed", "error", "an engine needs one sign for all; say true or false")
    if engine == "tensorrt" and not act.symmetric:
        yield Finding("act.symmetric", "error", "TensorRT wants zero points of 0; set it to true")
    if engine == "tensorrt" and not weight.narrow_range:
        yield Finding("weight.narrow_range", "error", "TensorRT's weights lie within [-127, 127]; set it to true")
    if profile.bias == "int32" and not profile.fold_bn:
        yield Finding("fold_bn", "error", "int32 biases need batch normalisation folded; set it or bias = 'float'")
    if engine in ("onnxruntime", "openvino", "torch-x86", "torch-qnnpack") and profile.storage == "s8":
        yield Finding("storage", "error", "this engine runs s8 activations in float in part; u8 holds the same codes")
    if engine == "executorch" and profile.storage == "u8":
        yield Finding("storage", "error", "XNNPACK's activations are s8")
    yield from _warnings(profile, weight, act, engine)


def _warnings(profile: HardwareProfile, weight: QuantSpec, act: QuantSpec, engine: str) -> Iterator[Finding]:
    if engine == "openvino" and profile.graph == 3:
        yield Finding("graph", "warning", "OpenVINO drops the quantiser between a convolution and an addition; use 2")
    if engine == "onnxruntime" and profile.graph != 3:
        yield Finding("graph", "warning", "convolutions whose output is not quantised run in float; use 3")
    if act.pot_scale != weight.pot_scale:
        yield Finding("weight.pot_scale", "warning", "rescaling is a shift only if both step sizes are powers of two")
    if act.reduce_range:
        yield Finding("act.reduce_range", "warning", "products are kept small by 7-bit weights; activations lose a bit")
    if profile.act.symmetric and act.signed is False and profile.graph == 3:
        yield Finding("act.signed", "warning", "a symmetric grid without a sign makes 0 of negative values")


def _family(name: str) -> str:
    return name.removesuffix("-avx2")


@functools.cache
def _built_in() -> dict[str, HardwareProfile]:
    folder = resources.files("mqbench_lite") / "profiles"
    files = sorted((each for each in folder.iterdir() if each.name.endswith(".toml")), key=lambda each: each.name)
    found = [_parsed(each.read_text(encoding="utf-8"), each.name) for each in files]
    return {profile.name: profile for profile in sorted(found, key=lambda each: (each.executable, each.name))}


def _parsed(text: str, source: str) -> HardwareProfile:
    try:
        tree: dict[str, Any] = tomllib.loads(text)
        none = tree.get("edge_bits") == 0
        made = from_tree(HardwareProfile, tree, source)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"profile {source} is not TOML: {error}") from None
    except UserError as error:
        raise ProfileError(
            f"profile {error.message}" if source in error.message else f"profile {source}: {error.message}", error.hint
        ) from None
    return dataclasses.replace(made, edge_bits=None) if none else made


def _loaded(point: Any) -> HardwareProfile:
    """The profile of an entry point."""
    try:
        value = point.load()
    except Exception as error:
        raise ProfileError(f"profile {point.name} ({point.value}) does not load: {error}") from error
    if isinstance(value, HardwareProfile):
        return value
    if isinstance(value, str | Path):
        return from_toml(Path(value))
    raise ProfileError(f"profile {point.name} ({point.value}) is neither a HardwareProfile nor the path of a TOML file")
