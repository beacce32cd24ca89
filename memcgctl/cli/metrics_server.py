"""How does ``memcgctl metrics --listen`` answer without a census for each scrape?

The main thread takes one when a scrape finds the last too old, never two at once, and
in a process of its own: what a census needs of memory is given back, and this process
stays small. Scrapes are answered by threads, from the last census.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NoReturn

from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from memcgctl.cli.reading import Paths
from memcgctl.cli.terminal import fail, say
from memcgctl.report.metrics import Families, unread

# How long a scrape waits for the census that it is the first to ask for: Prometheus
# gives up after 10 seconds by default. Then it gets the last one.
PATIENCE = 5.0
MAIN = "from memcgctl.__main__ import main; main()"


class Last:
    """The last answer, and whether somebody asks for a newer one."""

    def __init__(self, first: Families, interval: float):
        self.families = first
        self._interval = interval
        self._taken = time.monotonic()
        self._asked = False
        self._changed = threading.Condition()

    def answer(self) -> Families:
        """For a scrape, in any thread."""
        with self._changed:
            if time.monotonic() - self._taken >= self._interval:
                self._asked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._asked, PATIENCE)
            return self.families

    def renew(self, measure: Callable[[], Families]) -> None:
        """Wait until somebody asks, then measure: in the one thread that does."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked)
        found = measure()
        with self._changed:
            self.families, self._taken = found, time.monotonic()
            self._asked = False
            self._changed.notify_all()


class Server(ThreadingHTTPServer):
    """Answers scrapes, each in a thread that does not outlive the program."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int]):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Without a look-up of the name, which could take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]


class Handler(BaseHTTPRequestHandler):
    """Gives the last census in the format that was asked for."""

    timeout = 10  # of one who connects and says nothing
    last: ClassVar[Last]

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404)
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.last.answer())
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not a line for each scrape."""


def serve(
    address: tuple[str, int], interval: float, paths: Paths, census: Path | None
) -> NoReturn:
    """Until a signal comes. The first census has to succeed as any command has."""
    gc.enable()  # this is no short run
    command = _command(paths, census)
    try:
        server = Server(address)
    except OSError as error:
        fail(f"error: cannot listen on {_shown(address)}: {error.strerror}", 1)
    first = _run(command)
    if first.returncode:
        sys.exit(first.returncode if first.returncode > 0 else 1)
    Handler.last = Last(_parsed(first), interval)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address[:2]
    say(f"listening on http://{_shown((str(host), int(port)))}/metrics")
    while True:
        Handler.last.renew(lambda: _parsed(_run(command)))


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _command(paths: Paths, census: Path | None) -> list[str]:
    """What takes one census and writes it to stdout."""
    names = ("core", "vmlinux", "btf", "system-map", "vmcoreinfo")
    given = zip(names, paths, strict=True)
    if census:  # what else comes by habit, from the environment, is there as well
        given = zip(("census",), (census,), strict=True)
    options = [word for name, path in given if path for word in _option(name, path)]
    return [sys.executable, "-c", MAIN, "metrics", *options]


def _option(name: str, path: Path) -> tuple[str, str]:
    return f"--{name}", str(path.absolute())


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """From /, so that a module in whatever directory we are in is not taken for ours.

    When a signal ends us, it ends too.
    """
    ours = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([ours, before] if before else [ours])
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        cwd="/",
        check=False,
    )


def _parsed(done: subprocess.CompletedProcess[bytes]) -> Families:
    """What a census wrote; nothing of the one before if it came to no end."""
    if done.returncode:
        say(f"warning: a census ended with {done.returncode}")
        return unread()
    text = done.stdout.decode()
    return Families(tuple(text_string_to_metric_families(text)))  # type: ignore[no-untyped-call]
