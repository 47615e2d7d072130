"""What is asked for, and what comes of it: the fields are those of ``docs/protocol.md``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; what is ``None`` is as the scheduler usually does it."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repetition_window: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None

    @classmethod
    def greedy(cls) -> Sampling:
        """Always the most likely token."""
        return cls(temperature=0.0, repetition_penalty=1.0)

    def fields(self) -> dict[str, Any]:
        """What is not ``None``."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        if self.logit_bias is not None:
            fields["logit_bias"] = {str(number): bias for number, bias in self.logit_bias.items()}
        return fields


@dataclass
class WorkPacket:
    """One operation of one layer."""

    operation: str
    input_shape: Sequence[int]
    layer_idx: int | None = None
    device_target: str = "auto"
    input_dtype: str | None = None
    params: Mapping[str, Any] | None = None
    priority: int = 0
    can_pipeline: bool | None = None
    memory_requirement_mb: float | None = None
    estimated_duration_ms: float | None = None
    packet_id: str | int = field(default_factory=lambda: f"packet-{next(_numbers)}")

    def fields(self) -> dict[str, Any]:
        """The packet as the protocol has it."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        fields["input_shape"] = [int(size) for size in self.input_shape]
        return fields


@dataclass(frozen=True)
class WorkResult:
    """What came of a work packet. ``output`` is little-endian, the last dimension's numbers next to each other."""

    packet_id: str | int
    success: bool
    input: str
    output_shape: tuple[int, ...]
    output_dtype: str
    actual_duration_ms: float
    device_used: str
    memory_used_mb: float
    error_message: str | None
    output: bytes | None

    @classmethod
    def read(cls, result: Mapping[str, Any], output: bytes | None) -> WorkResult:
        """From an answer's ``result``, and its tensor."""
        names = (
            "packet_id success input output_dtype actual_duration_ms device_used memory_used_mb error_message"
        ).split()
        fields = {name: result[name] for name in names}
        return cls(output_shape=tuple(result["output_shape"]), output=output, **fields)

    def numpy(self) -> Any:
        """The output as a NumPy array. Needs NumPy, and a packet that had a tensor."""
        import numpy  # type: ignore[import-not-found,unused-ignore]

        if self.output is None:
            raise ValueError("the packet was a probe: there is no output")
        return numpy.frombuffer(self.output, dtype="<f4").reshape(self.output_shape)


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token that was chosen: natural logarithms of probabilities."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most likely ids with theirs, the likeliest first."""

    @classmethod
    def read(cls, token: Mapping[str, Any]) -> TokenLogprob:
        """From an entry of an answer's ``logprobs``."""
        top = tuple((other["id"], other["logprob"]) for other in token["top"])
        return cls(token["id"], token["logprob"], top)


@dataclass(frozen=True)
class GenerateResult:
    """A text that was written. Times and counts of tokens are 0 where they are not known."""

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    seed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    decoded_tokens: int = 0
    prompt_ms: float = 0.0
    decode_ms: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()
    written_by: tuple[str, ...] = ("scheduler",)

    @classmethod
    def read(cls, result: Mapping[str, Any]) -> GenerateResult:
        """From a summary's ``result``."""
        known = {name: result[name] for name in cls.__dataclass_fields__ if name in result}
        known["ids"] = tuple(result["ids"])
        known["logprobs"] = tuple(map(TokenLogprob.read, result.get("logprobs", ())))
        known["written_by"] = tuple(result.get("written_by", ("scheduler",)))
        return cls(**known)
