"""Who may hold a connection open, and how long: what nginx does in front of other servers.

A connection costs the server something only while it waits for its client: for a head, a body, or for an answer to be read. Each of
these has a time limit, and where there is no room for one more connection, the one that has been waited for longest makes it: half of a
request first, then an idle one. So half-open connections, however many, cost honest clients nothing. A connection whose
request is being worked on is never closed.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from paired_index_assets.serving.limits import Limits

FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
GRACE_SECONDS = 5.0  # beyond the application's own time limit for a body, whose refusal says more


class State(Enum):
    """What a connection is at; how long it may be, `Connection.patience` says."""

    HEAD = "the head of a request is coming in"
    BODY = "its body is coming in"
    WORK = "the server works on it"
    READ = "the client has yet to read what was answered"
    REST = "nothing is under way"


class Door:
    """All connections, by peer. `pushed_out` counts those that had to make room."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pushed_out = 0
        self._peers: dict[str, set[Connection]] = {}
        self._waited_for: dict[Connection, None] = {}  # in the middle of a request or an answer, longest first
        self._idle: dict[Connection, None] = {}

    def __len__(self) -> int:
        return sum(map(len, self._peers.values()))

    def admit(self, new: Connection) -> bool:
        """Whether there is room for `new`, after another had to go if need be."""
        mine = self._peers.get(new.peer, set())
        if len(mine) >= self.limits.connections_of_peer:
            crowd = mine
        elif len(self) >= self.limits.connections:
            crowd = max(self._peers.values(), key=len)
        else:
            crowd = None
        if crowd is not None:
            longest = next((one for waiting in (self._waited_for, self._idle) for one in waiting if one in crowd), None)
            if longest is None:
                return False
            self.pushed_out += 1
            longest.let_go()
        self._peers.setdefault(new.peer, set()).add(new)
        return True

    def gone(self, one: Connection) -> None:
        self.now(one, State.WORK)
        mine = self._peers.get(one.peer, set())
        mine.discard(one)
        if not mine:
            self._peers.pop(one.peer, None)

    def now(self, one: Connection, state: State) -> None:
        """`one` is at `state` from here on."""
        for waiting, states in ((self._waited_for, (State.HEAD, State.BODY, State.READ)), (self._idle, (State.REST,))):
            waiting.pop(one, None)
            if state in states and one in self._peers.get(one.peer, ()):
                waiting[one] = None

    def make_room_for_answers(self) -> None:
        """Let those go that have been reading longest, while more is unread than may be."""
        unread = {one: one.unread for one in self._waited_for if one.unread}
        left = sum(unread.values())
        for one, size in unread.items():
            if left <= self.limits.unread:
                return
            self.pushed_out += 1
            one.let_go()
            left -= size


class Connection(HttpToolsProtocol):
    """uvicorn's, which tells the door what it waits for, and does not wait forever. Made for uvicorn by ``partial(Connection, door)``."""

    def __init__(self, door: Door, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        limits = door.limits
        self._door, self.peer, self._state = door, "", State.WORK
        self._patience = {
            State.HEAD: limits.header_seconds,
            State.BODY: limits.body_seconds + GRACE_SECONDS,
            State.READ: limits.reading_seconds,
            State.REST: limits.idle_seconds,
        }
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0  # bytes of the head that is coming in
        self._all_in = True  # whether the body of the last request is
        self._running: Any = None  # the request that is being answered

    @property
    def unread(self) -> int:
        """Bytes of an answer that its client has not read."""
        return self.transport.get_write_buffer_size() if self._state is State.READ else 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        if self._door.admit(self):
            self._enter(State.HEAD)
        else:
            self._refuse(FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(State.WORK)
        self._door.gone(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._state is State.REST:
            self._enter(State.HEAD)
        if self._state is State.HEAD:
            if self._head > self._door.limits.header:
                return self._refuse(TOO_LONG)
            self._head += len(data)
        super().data_received(data)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head, self._all_in = 0, False
        self._enter(State.BODY)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._all_in = True
        self._enter(State.REST if self._answered() else State.WORK)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._state is State.WORK and self._answered():
            self._enter(State.REST)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._enter(State.READ)
        self._door.make_room_for_answers()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._enter(State.BODY if not self._all_in else State.REST if self._answered() else State.WORK)

    def let_go(self) -> None:
        """Close at once, whatever is under way."""
        self._door.gone(self)
        for cycle in (self.cycle, self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True  # nothing more is written to it
        self.transport.abort()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _enter(self, state: State) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._state = state
        if state is not State.WORK:
            self._timer = self.loop.call_later(self._patience[state], self._late)
        self._door.now(self, state)

    def _late(self) -> None:
        if self._state is State.HEAD and self._answered():
            self._refuse(LATE)
        elif self._state is State.REST:
            self.transport.close()
        else:
            self.let_go()

    def _refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()
