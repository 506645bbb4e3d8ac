"""The user's own code by name: `package.module:function` or `file.py:function`. Whoever asks for it runs it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from core_utils.errors import UserError, one_line


def call_named(
    name: str, options: Mapping[str, Any] = MappingProxyType({}), *, error: type[UserError] = UserError
) -> Any:
    """What a function of the user's code returns.

    Args:
        name: `package.module:function`, whose module may also lie in the working directory, or `file.py:function`.
        options: keyword arguments of the function.
        error: what to raise.

    Raises:
        UserError: the module or the function is missing, or fails; the message names it and keeps the cause.
    """
    place, _, function = name.rpartition(":")
    module = _imported(place, error)
    found = getattr(module, function, None)
    if not callable(found):
        names = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        nearest = difflib.get_close_matches(function, names, n=1)
        raise error(f"{place} has no function {function!r}", f"did you mean {nearest[0]!r}?" if nearest else None)
    try:
        return found(**options)
    except Exception as cause:  # the user's code
        raise error(f"{name}() failed: {one_line(cause)}") from cause


def _imported(place: str, error: type[UserError]) -> ModuleType:
    try:
        if not place.endswith(".py"):
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.insert(0, here)
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise error(f"{place} does not exist")
        return _executed(spec, spec.loader)
    except ModuleNotFoundError as cause:
        if cause.name and f"{place}.".startswith(f"{cause.name}."):
            raise error(f"no module {cause.name!r}", "it must lie on the Python path or here") from None
        raise error(f"{place} cannot be imported: {one_line(cause)}") from cause
    except UserError:
        raise
    except Exception as cause:  # the user's code
        raise error(f"{place} cannot be imported: {one_line(cause)}") from cause


def _executed(spec: ModuleSpec, loader: Loader) -> ModuleType:
    """Runs a file as a module, known by its name as long as no other module has it: classes look themselves up there."""
    module = importlib.util.module_from_spec(spec)
    new = sys.modules.setdefault(spec.name, module) is module
    try:
        loader.exec_module(module)
    except BaseException:
        if new:
            del sys.modules[spec.name]
        raise
    return module
