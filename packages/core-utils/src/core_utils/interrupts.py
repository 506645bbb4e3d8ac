"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from core_utils.errors import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """While inside, the first signal raises `KeyboardInterrupt` or `Terminated` where the program is."""

    def handle(number: int, _: FrameType | None) -> None:
        _next_one_ends()
        raise _exception(number)

    with _handlers(handle):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """While inside, the first signal waits: a step that has begun is finished and saved.

    Yields:
        A function that says whether a signal is waiting. On leaving, the one that waits is raised.
    """
    waiting: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        _next_one_ends()
        waiting.append(number)

    with _handlers(handle):
        yield lambda: bool(waiting)
    if waiting:
        raise _exception(waiting[0])


@contextlib.contextmanager
def _handlers(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Installs a handler for both signals, except where they are ignored or no business of this thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _next_one_ends() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _exception(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
