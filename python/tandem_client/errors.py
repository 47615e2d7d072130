"""What can go wrong."""

from __future__ import annotations


class TandemError(Exception):
    """Anything of this package."""


class SchedulerGone(TandemError):
    """The connection has ended, or there is no scheduler."""


class SchedulerTimeout(SchedulerGone):
    """No answer in time."""


class RequestRefused(TandemError):
    """The scheduler answered with an error.

    ``code`` is the kind of error, as ``docs/protocol.md`` names them.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
