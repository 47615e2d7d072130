"""The program ``tandem``, which writes texts where there is no scheduler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import TandemError


class LocalProgram:
    """Runs ``tandem generate`` on the CPU, one text at a time."""

    def __init__(self, program: str = "tandem", model: str | None = None) -> None:
        self.program = program
        self.model = model

    def stream(self, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """As ``SchedulerClient.stream``: the same fields, the same messages."""
        path = shutil.which(self.program)
        if path is None:
            raise TandemError(f"there is no scheduler, and no program {self.program!r} to take its place")
        command = [path, "generate", "--events", "--request", "-", "--placement", "cpu", "--quiet"]
        if self.model is not None:
            command += ["--model", self.model]
        # It is to write by itself, whatever the environment says.
        environment = {name: value for name, value in os.environ.items() if name != "TANDEM_CONNECT"}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as process:
            assert process.stdin and process.stdout and process.stderr
            # Read beside stdout, lest the program wait for room.
            complaints: list[bytes] = []
            stderr = process.stderr
            reader = threading.Thread(target=lambda: complaints.append(stderr.read()))
            reader.start()
            try:
                message = json.dumps({"type": "generate", **wanted}).encode()
                try:
                    process.stdin.write(message)
                    process.stdin.close()
                except BrokenPipeError:
                    pass
                finished = False
                for line in process.stdout:
                    event = json.loads(line)
                    finished = event.get("event") == "finished"
                    yield event
                code = process.wait()
                reader.join()
                if code != 0 or not finished:
                    said = complaints[0].decode(errors="replace").strip().splitlines()
                    raise TandemError(f"{self.program}: {said[-1] if said else f'exit code {code}'}")
            finally:
                # Somebody may want no more of it.
                if process.poll() is None:
                    process.kill()
                reader.join()
