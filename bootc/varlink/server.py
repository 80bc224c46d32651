# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The server: many clients, and threads only for calls that run.

One thread waits (epoll) for connections, for messages of idle clients, and for clients that go
away. A client that has sent something is handed to a worker thread, which runs its calls one after
another, waits a moment for the next one, and hands it back. So a thousand idle clients cost no
threads, and a client that calls without a pause is served by one thread.

A client is gone when it closed the connection (EPOLLHUP): the call that runs for it is cancelled.
One that shut down its sending side alone still gets its replies.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bootc.varlink.call import ClientGoneError, Connection
from bootc.varlink.message import FdList, VarlinkError, encode
from bootc.varlink.service import Service
from bootc.varlink.wire import Limits, Stream

_log = logging.getLogger(__name__)

LINGER = 0.002
"""Seconds that a worker waits for the next call of a client before it hands it back."""
WORKER_IDLE = 5.0
"""Seconds after which a worker without work ends."""
_PAUSE = 0.05
"""Seconds without new clients, when there was no room for one."""
_MUCH = 1 << 16


class _Client(Connection):
    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        super().__init__(sock)
        self.stream = Stream(sock, limits)
        self.fd = sock.fileno()
        # Known to epoll; and nobody works for it, so that epoll tells of its messages, too.
        self.watched = True
        self.resting = True
        self.poll = select.poll()
        self.poll.register(sock, select.POLLIN)

    def send(self, data: bytes, fds: FdList) -> None:
        try:
            self.stream.send(data, list(fds))
        except (ConnectionError, TimeoutError) as error:
            raise ClientGoneError from error


class Server:
    """Serves `service` on listening sockets and connections, until it is told to `stop`, until the
    last connection has ended where there is no listening socket, or until nobody was connected for
    `idle` seconds. It owns the sockets.
    """

    def __init__(
        self,
        service: Service,
        sockets: Sequence[socket.socket],
        *,
        limits: Limits | None = None,
        idle: float | None = None,
    ) -> None:
        self.service = service
        self.limits = limits or Limits()
        self._idle = idle
        self._given = list(sockets)
        self._listeners: dict[int, socket.socket] = {}
        self._clients: dict[int, _Client] = {}
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._work: queue.SimpleQueue[_Client | None] = queue.SimpleQueue()
        self._workers: set[threading.Thread] = set()
        self._idle_workers = 0
        self._stopping = False
        self._full = False
        # Made by `run`; -1 while nobody waits. The lock may be taken twice: a signal handler may
        # call `stop` wherever `run` is.
        self._wake = -1
        self._waking = threading.RLock()
        self._epoll: select.epoll

    def stop(self) -> None:
        """Take no more calls and cancel those that run; from any thread or signal handler."""
        self._stopping = True
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve. When it returns all connections are closed and all handlers have returned."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._epoll.register(self._wake, select.EPOLLIN)
            for sock in self._given:
                self._add(sock)
            self._given = []
            self._loop()
        finally:
            self._end()

    def _add(self, sock: socket.socket) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.setblocking(False)
            self._listeners[sock.fileno()] = sock
            self._epoll.register(sock, select.EPOLLIN)
        else:
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        if len(self._clients) >= self.limits.clients:
            name = "containers.bootc.transport.TooManyClients"
            error = VarlinkError(name, {"clients_max": self.limits.clients})
            _log.warning("refused a client: %d are connected", len(self._clients))
            _say(Stream(sock), error)
            sock.close()
            return
        client = _Client(sock, self.limits)
        with self._lock:
            self._epoll.register(client.fd, select.EPOLLIN)
            self._clients[client.fd] = client

    def _loop(self) -> None:
        busy = time.monotonic()
        paused = False
        while not self._stopping and (self._clients or self._listeners):
            in_use = bool(self._clients)
            timeout = -1.0
            if self._idle is not None and not in_use:
                timeout = busy + self._idle - time.monotonic()
                if timeout <= 0:
                    return
            if paused:
                timeout = _PAUSE
            events = self._epoll.poll(timeout)
            if in_use:
                busy = time.monotonic()
            if paused:
                self._watch_listeners(select.EPOLLIN)
                paused = False
            ready = []
            for fd, _ in events:
                if fd in self._listeners:
                    ready.append(self._listeners[fd])
                elif fd == self._wake:
                    os.eventfd_read(fd)
                else:
                    self._notice(fd)
            # New clients come last: they may get the numbers of those that were closed meanwhile.
            for listener in ready:
                paused = not self._accept(listener) or paused
            if paused:
                self._watch_listeners(0)

    def _watch_listeners(self, events: int) -> None:
        for listener in self._listeners.values():
            self._epoll.modify(listener, events)

    def _accept(self, listener: socket.socket) -> bool:
        """Accept what waits; False when there is no room for its descriptor now."""
        for _ in range(64):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    if not self._full:
                        _log.warning("clients have to wait: %s", error.strerror)
                    self._full = True
                    return False
                if error.errno != errno.ECONNABORTED:
                    raise
            else:
                self._admit(sock)
        self._full = False
        return True

    def _notice(self, fd: int) -> None:
        """Something came from a client that rests, or one that has a worker is gone."""
        with self._lock:
            client = self._clients.get(fd)
            if client is None or not client.watched:
                return
            # Not what the event says: a worker may have handed it back since.
            was_resting, client.resting = client.resting, False
            if was_resting:
                self._epoll.modify(fd, 0)
            else:
                client.watched = False
                self._epoll.unregister(fd)
        if was_resting:
            self._hand_out(client)
        else:
            client.hang_up()

    def _hand_out(self, client: _Client | None) -> None:
        self._work.put(client)
        with self._lock:
            waiting = self._work.qsize()
            if waiting <= self._idle_workers or len(self._workers) >= self.limits.handlers:
                return
            worker = threading.Thread(target=self._run_worker, name="varlink", daemon=True)
            self._workers.add(worker)
        try:
            worker.start()
        except RuntimeError:
            with self._lock:
                self._workers.discard(worker)
                if not self._workers:
                    raise
            _log.warning("cannot start one more thread, clients have to wait")

    def _run_worker(self) -> None:
        while True:
            with self._lock:
                self._idle_workers += 1
            late = False
            client = None
            try:
                client = self._work.get(timeout=WORKER_IDLE)
            except queue.Empty:
                late = True
            with self._lock:
                self._idle_workers -= 1
                if client is None and (not late or self._work.empty()):
                    self._workers.discard(threading.current_thread())
                    return
            if client is not None:
                self._serve(client)

    def _serve(self, client: _Client) -> None:
        """Run the calls of a client that are here; then hand it back, or end with it."""
        try:
            if self._serve_calls(client):
                return
        except VarlinkError as error:
            _say(client.stream, error)
        except (ClientGoneError, ConnectionError):
            _log.debug("a client is gone")
        except OSError as error:
            _log.info("gave up a client: %s", error)
        except Exception:
            _log.exception("gave up a client")
        self._close(client)

    def _serve_calls(self, client: _Client) -> bool:
        """False: the connection has ended."""
        stream, answer, send = client.stream, self.service.answer, client.send
        linger = LINGER * 1000
        while True:
            while (frame := stream.pop()) is not None:
                upgrade = answer(client, frame, send)
                if upgrade is not None:
                    stream.socket.setblocking(True)
                    upgrade.protocol(stream.socket, stream.take_early())
                    return False
                if not self._work.empty() and not self._idle_workers:
                    # Others wait for a worker: this client has to wait, too.
                    self._work.put(client)
                    return True
            try:
                if not stream.fill():
                    return False
            except BlockingIOError:
                if self._work.empty() and client.poll.poll(linger):
                    continue
                if self._hand_back(client):
                    return True

    def _hand_back(self, client: _Client) -> bool:
        """False when its end is near: the next read tells of it, and nothing else would.

        Raises `VarlinkError` when too much of unfinished messages would be kept.
        """
        with self._lock:
            if client.stream.waiting > _MUCH:
                waiting = sum(each.stream.waiting for each in self._clients.values())
                if waiting > self.limits.unfinished:
                    name = "containers.bootc.transport.TooMuchUnfinished"
                    raise VarlinkError(name, {"bytes_max": self.limits.unfinished})
            if not client.watched or self._stopping:
                return False
            client.resting = True
            self._epoll.modify(client.fd, select.EPOLLIN)
            return True

    def _close(self, client: _Client) -> None:
        client.hang_up()
        client.run_callbacks()
        with self._lock:
            if client.watched:
                self._epoll.unregister(client.fd)
            del self._clients[client.fd]
            client.stream.close()
            if not self._clients:
                self._ended.notify_all()
                os.eventfd_write(self._wake, 1)

    def _end(self) -> None:
        self._stopping = True
        for sock in (*self._listeners.values(), *self._given):
            sock.close()
        with self._lock:
            clients = list(self._clients.values())
            resting = [client for client in clients if client.resting]
            for client in resting:
                client.resting = False
        for client in clients:
            client.hang_up()
            try:
                client.stream.socket.shutdown(socket.SHUT_RD)
            except OSError as error:
                _log.debug("shutdown: %s", error)
        for client in resting:
            self._hand_out(client)
        with self._lock:
            while self._clients:
                self._ended.wait()
            workers = list(self._workers)
        for _ in workers:
            self._work.put(None)
        for worker in workers:
            worker.join()
        self._epoll.close()
        with self._waking:
            # Before it is closed: its number may be another one's right after that.
            wake, self._wake = self._wake, -1
            os.close(wake)


def _say(stream: Stream, error: VarlinkError) -> None:
    """Tell a client why it is given up, if it can be told at once."""
    message = encode({"error": error.name, "parameters": error.parameters})
    try:
        stream.socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError as lost:
        _log.debug("could not say %s: %s", error, lost)


def serve(
    service: Service,
    sockets: socket.socket | Sequence[socket.socket],
    *,
    limits: Limits | None = None,
    idle: float | None = None,
) -> None:
    """Serve on listening sockets, connections or both, as `Server.run` does."""
    given = [sockets] if isinstance(sockets, socket.socket) else list(sockets)
    Server(service, given, limits=limits, idle=idle).run()


@contextmanager
def serving(
    service: Service,
    sockets: socket.socket | Sequence[socket.socket],
    *,
    limits: Limits | None = None,
) -> Iterator[Server]:
    """A server in a thread of this process, for as long as the block."""
    given = [sockets] if isinstance(sockets, socket.socket) else list(sockets)
    server = Server(service, given, limits=limits)
    thread = threading.Thread(target=server.run, name="varlink-server")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
