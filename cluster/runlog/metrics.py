"""What the run measures: one JSON line per iteration and per evaluation, and the same numbers for Prometheus.

A value that is not finite is written as null. What the series promise is said in `series.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from prometheus_client import start_http_server

from milepost.cluster.runlog.endpoint import unusable
from milepost.cluster.runlog.records import EvalRecord, IterationRecord, Record
from milepost.cluster.runlog.series import Series, SystemView


class Metrics:
    """Writes records to `path` and serves them to Prometheus on `host:port` until `close`."""

    def __init__(self, path: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._series = Series()
        _cut_torn_line(path)
        self._file = open(path, "ab")  # noqa: SIM115  closed in close()
        try:
            self._server, self._thread = start_http_server(port, host, self._series.registry)
        except OSError as error:
            self._file.close()
            raise unusable(host, port, error) from error
        self.port: int = self._server.server_port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and close the file. A second call does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
        self._file.close()

    def begin(self, limits: Mapping[str, float]) -> None:
        """Training begins; `limits` are bounds of the configuration, by name, that alerts compare with."""
        self._series.begin(limits)

    def record(self, record: IterationRecord) -> None:
        """Append one line, flushed, and move the gauges and counters."""
        self._write(record)
        self._series.iteration(record)

    def record_eval(self, record: EvalRecord) -> None:
        """Append one line, flushed, and move the split's gauges."""
        self._write(record)
        self._series.evaluation(record)

    def see(self, view: SystemView) -> None:
        """Show what the parts of the system are now; no line is written."""
        self._series.system(view)

    def saved(self) -> None:
        """A checkpoint was written."""
        self._series.saved()

    def _write(self, record: Record) -> None:
        self._file.write(msgspec.json.encode(record) + b"\n")  # msgspec writes NaN and inf as null
        self._file.flush()


def _cut_torn_line(path: Path) -> None:
    """Drop what a killed driver left after the last newline, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())
