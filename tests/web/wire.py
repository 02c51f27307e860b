"""The network between browser and server, as a thing that a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Wire:
    """A relay on a free port of loopback. Cut, it drops every connection and takes no new one."""

    def __init__(self, port: int) -> None:
        self.server = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.is_cut = False
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing a listener does not wake a thread inside accept(); shutting it down does.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        self._thread.join(5)

    def cut(self) -> None:
        self.is_cut = True
        while self._ends:
            _end(self._ends.pop())

    def mend(self) -> None:
        self.is_cut = False

    def _accept(self) -> None:
        relays = []
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.is_cut:
                    near.close()
                    continue
                far = socket.create_connection(self.server)
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    relays.append(threading.Thread(target=_relay, args=(source, target)))
                    relays[-1].start()
        self.cut()
        for relay in relays:
            relay.join(5)


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _end(target)
    _end(source)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
