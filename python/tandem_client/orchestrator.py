"""Texts, wherever they can be written: by the scheduler, and by the program where there is none."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .client import DEFAULT_ADDRESS, SchedulerClient
from .errors import RequestRefused, SchedulerGone
from .fallback import LocalProgram
from .messages import GenerateResult, Sampling

# What a scheduler says that cannot go on with a text that is as it must be.
_UNABLE = {"shutting_down", "queue_full", "slow_reader", "failed"}


class FallbackWarning(UserWarning):
    """A text is written by the program ``tandem``, since there is no scheduler."""


class Orchestrator:
    """Has texts written by a scheduler, and looks after them.

    ``model`` is what the scheduler's model was loaded from: with it the tokenizer is found, where it is a folder with a
    ``tokenizer.json``, and the program ``tandem`` is run where there is no scheduler. ``prefill_chunk`` is how many tokens
    of a prompt the scheduler gets at a time; ``reconnect``, for how many seconds a scheduler that is gone is looked for.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        model: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        program: str = "tandem",
        timeout: float = 5.0,
        reconnect: float = 1.0,
        prefill_chunk: int = 512,
    ) -> None:
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk: expected 1 or more, found {prefill_chunk}")
        self.client = SchedulerClient(address, timeout)
        self.reconnect = reconnect
        self.prefill_chunk = prefill_chunk
        self._local = LocalProgram(program, None if model is None else os.fspath(model))
        self._tokenizer = _find_tokenizer(model, tokenizer)
        self._warned = False
        self.last: GenerateResult | None = None
        """The newest text that has come to its end."""

    def close(self) -> None:
        """Closes the connection."""
        self.client.close()

    def __enter__(self) -> Orchestrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokenize(self, text: str) -> list[int] | None:
        """The text's ids; ``None`` without a tokenizer: then the scheduler makes them."""
        return None if self._tokenizer is None else self._tokenizer.encode(text).ids

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> GenerateResult:
        """Continues a prompt: a text, or ids."""
        return self._whole(self.stream(prompt, max_tokens, sampling, stop))

    def stream(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Iterator[str]:
        """As ``generate``, but yields the text as it comes; ``last`` tells the rest."""
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        what = {"prompt": prompt} if ids is None else {"ids": ids}
        return self._write({**what, "continues_prompt": True}, max_tokens, sampling, stop)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> GenerateResult:
        """Answers a conversation: messages with ``role`` and ``content``."""
        return self._whole(self.stream_chat(messages, max_tokens, sampling, stop))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Iterator[str]:
        """As ``chat``, but yields the answer as it comes."""
        what = {"messages": [dict(message) for message in messages]}
        return self._write(what, max_tokens, sampling, stop)

    def _whole(self, pieces: Iterator[str]) -> GenerateResult:
        for _ in pieces:
            pass
        assert self.last is not None
        return self.last

    def _write(
        self,
        what: Mapping[str, Any],
        max_tokens: int | None,
        sampling: Sampling | None,
        stop: str | Sequence[str] | None,
    ) -> Iterator[str]:
        fields = (sampling or Sampling()).fields()
        # The same for whoever goes on with it.
        fields.setdefault("seed", random.getrandbits(32))
        text = _Text(dict(what), max_tokens, fields, stop)
        while True:
            before = len(text.ids)
            try:
                self._look()
                self._prefill(text)
                yield from text.follow(self.client.stream(**text.wanted()), "scheduler")
                break
            except SchedulerGone as gone:
                reason = str(gone)
                # A new socket: what was under way on the old one is given up.
                self.client.close()
            except RequestRefused as refused:
                if refused.code not in _UNABLE:
                    raise
                reason = f"the scheduler does not go on ({refused})"
            if len(text.ids) == before:
                self._warn(reason)
                yield from text.follow(self._local.stream(text.wanted()), "this process")
                break
        self.last = text.result()

    def _look(self) -> None:
        """Waits for a scheduler that answers, for some time."""
        end = time.monotonic() + self.reconnect
        while True:
            try:
                self.client.health_check()
                return
            except SchedulerGone:
                self.client.close()
                if time.monotonic() >= end:
                    raise
                time.sleep(min(0.2, self.reconnect))

    def _prefill(self, text: _Text) -> None:
        """Has a long prompt read chunk by chunk, so that each has an answer in time; what has been read is kept for the next."""
        ids = text.wanted().get("ids", [])
        for end in range(self.prefill_chunk, len(ids), self.prefill_chunk):
            self.client.generate(ids=ids[:end], max_tokens=0)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            message = f"{reason}: {self._local.program} writes here, on the CPU"
            warnings.warn(message, FallbackWarning, stacklevel=4)


class _Text:
    """A text so far, whoever writes it."""

    def __init__(
        self,
        what: dict[str, Any],
        max_tokens: int | None,
        sampling: dict[str, Any],
        stop: str | Sequence[str] | None,
    ) -> None:
        self.what = what
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.stop = [stop] if isinstance(stop, str) else list(stop or [])
        self.ids: list[int] = []
        self.text = ""
        self.by: list[str] = []
        self.summary: dict[str, Any] = {}

    def wanted(self) -> dict[str, Any]:
        """What is to be written from here on."""
        fields = dict(self.what)
        if self.ids:
            fields["written_ids"] = self.ids
        if self.max_tokens is not None:
            fields["max_tokens"] = self.max_tokens - len(self.ids)
        if self.stop:
            fields["stop"] = self.stop
        fields["sampling"] = self.sampling
        return fields

    def follow(self, messages: Iterator[dict[str, Any]], who: str) -> Iterator[str]:
        """Takes what comes; yields the text of it."""
        for message in messages:
            event = message["event"]
            if event == "begun" and not self.ids:
                # From here on ids say what came before, whatever it was made of.
                continues = "prompt" in self.what or self.what.get("continues_prompt", False)
                self.what = {"ids": message["prompt_ids"], "continues_prompt": continues}
            elif event == "tokens":
                if self.by[-1:] != [who]:
                    self.by.append(who)
                self.ids += message["ids"]
                self.text += message["text"]
                yield message["text"]
            elif event == "finished":
                self.summary = message["result"]

    def result(self) -> GenerateResult:
        return GenerateResult.read(
            {**self.summary, "text": self.text, "ids": self.ids, "written_by": self.by}
        )


def _find_tokenizer(
    model: str | os.PathLike[str] | None, tokenizer: str | os.PathLike[str] | None
) -> Tokenizer | None:
    if tokenizer is not None:
        return Tokenizer.from_file(os.fspath(tokenizer))
    beside = Path(model) / "tokenizer.json" if model is not None else None
    return Tokenizer.from_file(str(beside)) if beside is not None and beside.is_file() else None
