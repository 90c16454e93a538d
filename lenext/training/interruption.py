"""Ctrl-C and SIGTERM: the work stops where its state is whole, so that it can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any


class Interruption:
    """While entered, SIGINT and SIGTERM raise KeyboardInterrupt, but not inside `held`, where they wait for its end.

    A second signal is passed over: it often comes at once, where Ctrl-C reaches a program and what started it, and
    would end the handling of the first before its work is saved. A third one raises again.
    alone: False where several processes must stop at the same step: then nothing is raised, `asked` is set, and the
    loop asks the others.
    """

    def __init__(self) -> None:
        self.signals = 0
        self.alone = True
        self._holding = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self.signals > 0

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._mourn(True)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _mourn(self, mourns: bool) -> None:
        """Whether the end of a helper process interrupts this one, as torch's loader has it; not once the end is near:
        a scheduler's signal reaches the helpers too, and their end must not come between the state and its file."""
        number = getattr(signal, "SIGCHLD", None)
        if number is None or threading.current_thread() is not threading.main_thread():
            return
        if mourns and number in self._before:
            signal.signal(number, self._before.pop(number))
        elif not mourns and number not in self._before:
            self._before[number] = signal.signal(number, signal.SIG_DFL)

    def _receive(self, number: int, frame: object) -> None:
        self._mourn(False)
        self.signals += 1
        if not self._holding and self.signals != (2 if self.alone else 1):
            raise KeyboardInterrupt

    def has_come(self, error: BaseException) -> bool:
        """Whether an error is an interruption, or the end of a helper process that was interrupted with this one."""
        if isinstance(error, RuntimeError) and not self.asked:
            self._mourn(False)
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(0.3)  # the signal to this process may be on its way
        return isinstance(error, KeyboardInterrupt) or (isinstance(error, RuntimeError) and self.asked)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Finish what is begun: a signal is heeded when the block ends."""
        asked_before, self._holding = self.asked, True
        try:
            yield
        finally:
            self._holding = False
        if self.asked and self.alone and not asked_before:
            raise KeyboardInterrupt
