"""Messages to a scheduler, and their answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from .errors import RequestRefused, SchedulerGone, SchedulerTimeout
from .messages import GenerateResult, Sampling, WorkPacket, WorkResult

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"


class SchedulerClient:
    """A client of one scheduler.

    It may be used by one thread at a time. ``timeout`` is how long an answer may take, in seconds; for a text, how long the
    scheduler may be silent before it is asked whether it is still there, and how long it may take to say so.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, timeout: float = 5.0) -> None:
        self.address = address
        self.timeout = timeout
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._next_id = 0

    def connect(self) -> SchedulerClient:
        """Opens the socket; an open one is closed first, and what was under way on it is given up.

        It does not wait for the scheduler: ``health_check`` does.
        """
        self.close()
        self._context = zmq.Context()
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5_000)
        events = zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        self._monitor = socket.get_monitor_socket(events)
        socket.connect(self.address)
        self._socket = socket
        return self

    def close(self) -> None:
        """Closes the socket: texts that are under way end."""
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(0)
        if self._context is not None:
            self._context.destroy(0)
        self._context = self._socket = self._monitor = None

    def __enter__(self) -> SchedulerClient:
        return self if self._socket is not None else self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    # One answer.

    def health_check(self) -> dict[str, Any]:
        """Whether the scheduler is well, its devices and its model."""
        return self._ask({"type": "health_check"})[0]

    def send_work_packet(
        self,
        packet: WorkPacket | Mapping[str, Any],
        tensor: Any = None,
        timeout: float | None = None,
    ) -> WorkResult:
        """Has one operation run: on ``tensor`` (any buffer, such as a NumPy array), or as a probe without one."""
        data = packet.fields() if isinstance(packet, WorkPacket) else dict(packet)
        frame = None if tensor is None else memoryview(tensor).tobytes()
        message = {"type": "work_packet", "data": data}
        answer, output = self._ask(message, frame, timeout)
        return WorkResult.read(answer["result"], output)

    def get_telemetry(self) -> dict[str, Any]:
        """What operations took so far."""
        return dict(self._ask({"type": "get_telemetry"})[0]["telemetry"])

    def get_state(self) -> dict[str, Any]:
        """What the engine does now, as the dashboard shows it."""
        return dict(self._ask({"type": "get_state"})[0]["state"])

    def get_trace(self) -> dict[str, Any]:
        """The recent past as a trace, which https://ui.perfetto.dev shows."""
        return dict(self._ask({"type": "get_trace"})[0]["trace"])

    def get_bandwidth_stats(self) -> dict[str, Any]:
        """How much of the memory's bandwidth is in use."""
        return dict(self._ask({"type": "get_bandwidth_stats"})[0]["bandwidth_stats"])

    def set_policy(self, policy: str, enable_pipelining: bool | None = None) -> dict[str, Any]:
        """Another scheduling policy from now on: ``static``, ``bandwidth_aware`` or ``adaptive``."""
        message: dict[str, Any] = {"type": "set_policy", "policy": policy}
        if enable_pipelining is not None:
            message["enable_pipelining"] = enable_pipelining
        return self._ask(message)[0]

    def reload_config(self, yaml: str | None = None) -> dict[str, Any]:
        """Has the scheduler read its config file anew, or take this text in its place."""
        message = {"type": "reload_config"} if yaml is None else {"type": "reload_config", "yaml": yaml}
        return self._ask(message)[0]

    def shutdown(self) -> dict[str, Any]:
        """Ends the scheduler."""
        return self._ask({"type": "shutdown"})[0]

    # Texts.

    def stream(self, **fields: Any) -> Iterator[dict[str, Any]]:
        """Has a text written; yields the messages of the answer as they come, the last with ``event`` ``finished``.

        The fields are those of ``generate`` in the protocol: ``prompt``, ``ids`` or ``messages``, ``max_tokens``,
        ``sampling``, ``stop``, ``logprobs``, ``constraint`` and others. Closing the iterator ends the text.
        """
        wanted = _generate_fields(fields)
        number = self._send({"type": "generate", "stream": True, **wanted})
        finished = False
        try:
            asked = False
            while not finished:
                answer = self._receive(self.timeout)
                if answer is None:
                    if asked:
                        raise self._time_out(self.timeout)
                    # A long prompt or a long queue says nothing for a while; the scheduler answers all the same.
                    self._send({"type": "health_check"})
                    asked = True
                    continue
                asked = False
                if not _is_of(answer[0], number):
                    continue
                _check(answer[0])
                finished = answer[0]["event"] == "finished"
                yield answer[0]
        finally:
            if not finished and self._socket is not None:
                self._send({"type": "cancel", "target": number})

    def generate(self, **fields: Any) -> GenerateResult:
        """As ``stream``, but answers only what came of it."""
        result: Mapping[str, Any] = {}
        for message in self.stream(**fields):
            result = message.get("result", result)
        return GenerateResult.read(result)

    # The socket.

    def _ask(
        self, message: Mapping[str, Any], frame: bytes | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], bytes | None]:
        timeout = self.timeout if timeout is None else timeout
        number = self._send(message, frame)
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(end - time.monotonic())
            if answer is None:
                raise self._time_out(timeout)
            # Others are late answers to what was given up.
            if _is_of(answer[0], number):
                _check(answer[0])
                return answer

    def _send(self, message: Mapping[str, Any], frame: bytes | None = None) -> int:
        if self._socket is None:
            self.connect()
        assert self._socket is not None
        self._next_id += 1
        frames = [json.dumps({**message, "id": self._next_id}).encode()]
        if frame is not None:
            frames.append(frame)
        self._socket.send_multipart(frames)
        return self._next_id

    def _receive(self, wait: float) -> tuple[dict[str, Any], bytes | None] | None:
        """The next message; ``None`` where none comes in time."""
        if self._socket is None or self._monitor is None:
            raise SchedulerGone(f"not connected to {self.address}")
        end = time.monotonic() + max(wait, 0.0)
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while True:
            # First what has come: the scheduler may have ended after it.
            if self._socket.poll(0):
                frames = self._socket.recv_multipart()
                return json.loads(frames[0]), frames[1] if len(frames) > 1 else None
            # The newest of what has happened to the connection counts.
            newest = zmq.EVENT_CONNECTED
            while self._monitor.poll(0):
                newest = recv_monitor_message(self._monitor)["event"]
            if newest != zmq.EVENT_CONNECTED:
                raise SchedulerGone(f"there is no scheduler at {self.address}")
            left = end - time.monotonic()
            if left <= 0:
                return None
            poller.poll(int(left * 1000) + 1)

    def _time_out(self, waited: float) -> SchedulerTimeout:
        return SchedulerTimeout(f"no answer from {self.address} within {waited:.1f} s")


def _is_of(answer: Mapping[str, Any], number: int) -> bool:
    # An error without an id is about all that this client asked for.
    return bool(answer.get("id", number if answer.get("status") == "error" else None) == number)


def _check(answer: Mapping[str, Any]) -> None:
    if answer.get("status") == "error":
        raise RequestRefused(str(answer.get("error")), str(answer.get("code")))


def _generate_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {name: value for name, value in fields.items() if value is not None}
    if isinstance(wanted.get("sampling"), Sampling):
        wanted["sampling"] = wanted["sampling"].fields()
    if isinstance(wanted.get("ids"), Sequence):
        wanted["ids"] = [int(number) for number in wanted["ids"]]
    return wanted
