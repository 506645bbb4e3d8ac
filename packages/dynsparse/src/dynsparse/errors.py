"""What can go wrong by the user's hand, in the words of sparse dynamic convolution."""

from core_utils.errors import UserError


class DynSparseError(UserError):
    """Any bad input to this package; a ValueError whose text is one line."""


class ConfigError(DynSparseError):
    """A setting is out of range; the message names the argument."""


class InputError(DynSparseError):
    """A layer was given a tensor of the wrong shape; the message names the shape that it takes."""


class SparsityError(DynSparseError):
    """A sparsity is no fraction in [0, 1), or cannot be reached."""


class ConversionError(DynSparseError):
    """No convolution of a model can be converted; the message lists the candidates."""


class CheckpointError(DynSparseError):
    """Weights do not fit a model; the message names the first key at fault."""


class SparsityWarning(UserWarning):
    """A layer cannot be as sparse as asked; the message names it and says what was reached."""


def check_sparsity(sparsity: float | int) -> float:
    """The sparsity as a float, the fraction of zero weights.

    Raises:
        SparsityError: it is not in [0, 1).
    """
    if 0 <= sparsity < 1:
        return float(sparsity)
    hint = f"did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else None
    raise SparsityError(f"sparsity is a fraction in [0, 1); got {sparsity:g}", hint)


def check_choice(argument: str, value: str, choices: object) -> str:
    """The value, which must be among the choices (any container of names).

    Raises:
        ConfigError: it is not; the message lists them.
    """
    names = [str(name) for name in choices]  # type: ignore[attr-defined]
    if value not in names:
        raise ConfigError(f"{argument} is one of {', '.join(names)}; got {value!r}")
    return value
