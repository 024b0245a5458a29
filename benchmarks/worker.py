"""A child process that answers words with lines of JSON (see `serving.serve`).

    with Worker([sys.executable, "-m", "benchmarks.gradient_worker", ...]) as worker:
        value, seconds = worker.ask("step")

Its memory is not watched, which would take time from what is timed; `memory.PeakSampler` watches ``worker.pid``.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import ROOT, environment


class Worker:
    """A started worker, as a context manager.

    Args:
        command: Program and arguments.
        variables: Environment variables beside those that every child gets.
    """

    def __init__(self, command: Sequence[str], *, variables: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment(), **(variables or {})},
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # the worker's loop ends with its input
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def ask(self, word: str) -> tuple[Any, float]:
        """The worker's answer and the seconds that it took.

        Raises:
            SystemExit: The worker ended; the message ends with what it wrote to standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its output says so
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise SystemExit(f"{' '.join(self._command)} ended:\n{self._errors.read()[-4000:]}")
        answer = json.loads(line)
        return answer["value"], answer["seconds"]
