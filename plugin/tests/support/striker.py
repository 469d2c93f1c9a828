"""A striker for one test, its reports at hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from expedited.striker.link import StrikerLink
from expedited.teardown.report import Report
from support.waiting import wait_for

__all__ = ["StrikerProcess", "stand_in"]


@contextmanager
def stand_in(run_dir: Path, program: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens as a striker does, and says so by an empty line; until the agent or the test ends it."""
    command = [sys.executable, "-c", program, str(run_dir / "striker.sock"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == b"\n"
            yield one
        finally:
            one.kill()


class StrikerProcess:
    """``python -m expedited.striker``, READY.

    Args:
        run_dir: Its own; the path must be short.
        options: Of its command line.
        under: The words that go before it.
        popen: More of :class:`subprocess.Popen`'s.
    """

    def __init__(self, run_dir: Path, *options: str, under: Sequence[str] = (), **popen: Any) -> None:
        self.run_dir = run_dir
        self.socket = str(run_dir / "striker.sock")
        self.log_path = run_dir / "log"
        # A worker that gets no CPU for 50 ms is this machine's affair, and not what a test is about
        if not any(option.startswith("--budget") for option in options):
            options = (*options, "--budget=1")
        command = [*under, sys.executable, "-m", "expedited.striker", f"--run-dir={run_dir}", *options]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, **popen)
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()
            assert line, f"the striker did not start: {self.log}"
            self.ready = json.loads(line)
            self.link = StrikerLink.connect(self.socket)
        except BaseException:
            self.process.kill()  # and its gate with it
            raise

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def status(self) -> dict[str, Any]:
        with StrikerLink.connect(self.socket) as link:
            return link.ask("status")

    def reports(self) -> list[Report]:
        """All that it remembers."""
        with StrikerLink.connect(self.socket) as link:
            return [Report.from_json(report) for report in link.ask("reports", after=0)["reports"]]

    def policy(self, **policy: Any) -> None:
        self.link.send("policy", default=policy)
        self.status()  # its answer comes after the policy was taken

    def said(self, what: str, **fields: Any) -> dict[str, Any]:
        """The next message that is ``what`` and has those fields."""
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at:
            message = self.link.receive(1.0)
            if message and message["is"] == what and fields.items() <= message.items():
                return message
        raise AssertionError(f"no {what} {fields}; the log: {self.log}")

    def report_of(self, container_id: str, timeout_seconds: float = 30.0) -> Report:
        """The next report about this container."""
        give_up_at = time.monotonic() + timeout_seconds
        while time.monotonic() < give_up_at:
            message = self.link.receive(1.0)
            if message and message["is"] == "report" and message["report"]["container_id"] == container_id:
                return Report.from_json(message["report"])
        raise AssertionError(f"no report of {container_id}; the log: {self.log}")

    def wait_gated(self, *container_ids: str) -> None:
        wait_for(lambda: set(container_ids) <= set(self.status()["gated"]), f"not gated: {container_ids}")

    def wait_reported(self, *container_ids: str) -> dict[str, Report]:
        """The last report about each of these, when there are all."""
        found: dict[str, Report] = {}

        def are_there() -> bool:
            found.update((report.container_id, report) for report in self.reports())
            return found.keys() >= set(container_ids)

        wait_for(are_there, lambda: f"reports are missing; the log: {self.log}")
        return found

    def wait_for_gate_number(self, restarts: int) -> dict[str, Any]:
        """Until so many gates have failed and another is up."""
        found: dict[str, Any] = {}

        def is_up() -> bool:
            with suppress(Exception):
                found.update(self.status())
            return found.get("restarts") == restarts

        wait_for(is_up, lambda: f"no gate number {restarts}: {found}; {self.log}")
        self.link.close()
        self.link = StrikerLink.connect(self.socket)
        return found

    def close(self) -> None:
        self.link.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                assert self.process.wait(30) == 0, self.log
            finally:
                self.process.kill()
