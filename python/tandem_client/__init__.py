"""Client of the Tandem scheduler: texts and work packets over ZeroMQ (``docs/protocol.md``)."""

from .client import SchedulerClient
from .errors import RequestRefused, SchedulerGone, SchedulerTimeout, TandemError
from .messages import GenerateResult, Sampling, TokenLogprob, WorkPacket, WorkResult
from .orchestrator import FallbackWarning, Orchestrator

__all__ = [
    "FallbackWarning",
    "GenerateResult",
    "Orchestrator",
    "RequestRefused",
    "Sampling",
    "SchedulerClient",
    "SchedulerGone",
    "SchedulerTimeout",
    "TandemError",
    "TokenLogprob",
    "WorkPacket",
    "WorkResult",
]
