"""What can go wrong by the user's hand, by a check that was asked for, or by a signal."""


class UserError(ValueError):
    """Bad input: one line that names the file or option and says what would be right.

    Args:
        message: what is wrong, with the value found.
        hint: what to do instead.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class CheckFailed(Exception):  # noqa: N818 -- a check that fails is an outcome, not a mistake
    """A check that the user asked for did not hold: a gate, an engine's agreement, a finite loss."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; treated like Ctrl-C, with exit code 143."""


def one_line(error: BaseException, *, longest: int = 200) -> str:
    """Somebody else's exception for a message of ours: its type and the first line of a text that may go on for pages."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:longest]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
