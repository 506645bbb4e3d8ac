"""A frozen dataclass from a TOML file, `key=value` pairs and typed options, in rising order of precedence."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core_utils.errors import UserError

Config = TypeVar("Config")


def settings(
    config: type[Config], *, file: Path | None = None, pairs: Sequence[str] = (), typed: Mapping[str, Any] | None = None
) -> Config:
    """Builds a configuration; what is named nowhere keeps its default.

    Args:
        config: a frozen dataclass; nested ones are tables in the file and dotted keys in pairs.
        file: TOML.
        pairs: `key=value`, the value in TOML's spelling or plain text; beats the file.
        typed: options that the user typed, None for one that was not; beats the pairs.

    Returns:
        The configuration, checked by its own `__post_init__`.

    Raises:
        UserError: a file that cannot be read, an unknown key (naming the nearest), a value of another type or not
            finite, or one that the dataclass refuses; the message names the file or option.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        _merge(tree, _read_toml(file), str(file))
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {pair}: expected key=value")
        value = _toml_value(text)
        for name in reversed(key.strip().split(".")):
            value = {name: value}
        _merge(tree, value, f"--set {pair}")
    for name, value in (typed or {}).items():
        if value is not None:
            _merge(tree, {name: value}, f"--{name.replace('_', '-')}")
    return _build(config, tree, "")


def from_tree(config: type[Config], tree: Mapping[str, Any], source: str) -> Config:
    """Builds a configuration from JSON data, such as a run's `config.json`.

    Raises:
        UserError: as `settings`; messages name `source`.
    """
    given: dict[str, Any] = {}
    _merge(given, {key: value for key, value in tree.items() if value is not None}, source)
    return _build(config, given, "")


@dataclasses.dataclass(frozen=True)
class _Given:
    """A value with the place that gave it, for messages."""

    value: Any
    source: str


def _merge(tree: dict[str, Any], new: Mapping[str, Any], source: str) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping):
            branch = tree.setdefault(key, {})
            if not isinstance(branch, dict):
                branch = tree[key] = {}
            _merge(branch, value, source)
        else:
            tree[key] = _Given(value, source)


def _build(config: type[Config], tree: Mapping[str, Any], prefix: str) -> Config:
    hints = typing.get_type_hints(config)
    names = [each.name for each in dataclasses.fields(config) if each.init]  # type: ignore[arg-type]
    values = {}
    for key, branch in tree.items():
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
            raise UserError(f"{_source(branch)}: unknown key {prefix + key!r}", f"did you mean {nearest[0]!r}?")
        hint = hints[key]
        if isinstance(branch, dict):
            if not dataclasses.is_dataclass(hint):
                raise UserError(f"{_source(branch)}: {prefix + key} is no table")
            values[key] = _build(hint, branch, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            values[key] = _convert(hint, branch.value, f"{branch.source}: {prefix}{key}")
    try:
        return config(**values)
    except UserError as error:
        named = next((key for key in values if error.message.startswith(key)), None)
        source = _source(tree[named]) + ": " if named is not None else ""
        raise UserError(source + error.message, error.hint) from None
    except TypeError:
        missing = [name for name in names if name not in values and _required(config, name)]
        raise UserError(f"the configuration lacks {', '.join(prefix + name for name in missing)}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the annotated type; refuses what would lose meaning."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        kinds = [choice for choice in choices if choice is not type(None)]
        for kind in kinds[:-1]:
            try:
                return _convert(kind, value, where)
            except UserError:
                continue
        return _convert(kinds[-1], value, where)
    if origin is typing.Literal:
        return _one_of(value, choices, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [choices[0]] * len(value) if choices[1:] == (...,) else list(choices)
        if len(kinds) != len(value):
            raise UserError(f"{where} takes {len(kinds)} values, got {len(value)}")
        return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _build(hint, {key: _Given(item, where) for key, item in value.items()}, "")  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(_one_of(value, [member.value for member in hint], where))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"{where} must be a finite number, got {value}")
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise UserError(f"{where} must be of type {wanted}, got {value!r}")


def _one_of(value: Any, choices: Sequence[Any], where: str) -> Any:
    if value not in choices:
        raise UserError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {file} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--config {file} is not TOML: {error}") from None


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _source(branch: Any) -> str:
    while isinstance(branch, dict):
        branch = next(iter(branch.values()))
    return branch.source


def _required(config: type, name: str) -> bool:
    (field,) = (each for each in dataclasses.fields(config) if each.name == name)
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
