"""The connections from actors to their driver: the end of one is the message, and they carry signs of life.

::

    driver ── "?" ──> actor's hub ── "!" and what the actor is doing ──> driver

An actor's hub answers on a thread of its own, so a host that is busy answers and one that is stopped does not. A method
that keeps Python's interpreter lock keeps its host from answering, as it would keep it from answering anything else.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time

from cgexec.engine.reports import Pulse
from cgexec.engine.steps import Step
from cgexec.engine.wire import Wire

_QUESTION = b"?"
_PULSE = struct.Struct("<cdH")  # "!", for how long, and the length of the method's name
_LONGEST_NAME = 1000
_MOST_BYTES = 1 << 16
_SLICE_S = 0.1
_NOT_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class ControlEndedError(Exception):
    """The other end has gone, or has let go of the graph."""


class AtWork:
    """What a process is doing for a graph. Apart from its hub, so that nothing that is asked for it holds that."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def pulse(self) -> Pulse:
        """Return the method that has been going on for longest, if any is."""
        return max((step.pulse() for step in self.steps), key=lambda pulse: pulse.for_s, default=Pulse())


class Control:
    """One end. ``at_work`` says what this side is doing. Only the hub's thread hears; any thread may ask."""

    def __init__(self, wire: Wire, at_work: AtWork) -> None:
        self.wire = wire
        self._at_work = at_work
        self._heard = b""

    def has_ended(self) -> bool:
        """Return whether the other end has gone, heard of or not."""
        poller = select.poll()
        poller.register(self.wire, select.POLLRDHUP)
        return bool(poller.poll(0))

    def ask(self) -> None:
        """Ask the other end for a sign of life; does not wait, and a connection that has ended is no error."""
        self._send(_QUESTION)

    def hear(self) -> Pulse | None:
        """Take what has come: answer a question, and return the last sign of life, if one has come whole.

        Raises:
            ControlEndedError: the connection has ended.
        """
        try:
            data = self.wire.sock.recv(_MOST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ControlEndedError from error
        if not data:
            raise ControlEndedError
        self._heard += data
        found = None
        while self._heard:
            if self._heard[:1] == _QUESTION:
                self._heard = self._heard[1:]
                self._answer()
                continue
            if len(self._heard) < _PULSE.size:
                break
            _, for_s, length = _PULSE.unpack_from(self._heard)
            end = _PULSE.size + length
            if len(self._heard) < end:
                break
            name, self._heard = self._heard[_PULSE.size : end], self._heard[end:]
            found = Pulse(name.decode(errors="replace") or None, for_s)
        return found

    def _answer(self) -> None:
        pulse = self._at_work.pulse()
        name = (pulse.method or "").encode()[:_LONGEST_NAME]
        self._send(_PULSE.pack(b"!", pulse.for_s, len(name)) + name)

    def _send(self, message: bytes) -> None:
        try:
            sent = self.wire.sock.send(message, _NOT_NOW)
        except OSError:  # it has ended, as whoever hears will hear; or nobody has listened to thousands of them
            return
        if sent < len(message):
            self.wire.shut()  # what follows could not be told apart


class Controls:
    """The control connections of one process in one generation, by whom they lead to."""

    def __init__(self, at_work: AtWork) -> None:
        self._at_work = at_work
        self._changed = threading.Condition()
        self._controls: dict[str, Control] = {}
        self._pulses: dict[str, Pulse] = {}  # that have come since they were asked for
        self._closed = False

    def add(self, identity: str, wire: Wire) -> None:
        """Take in a connection. One that had the same name before is ended: its process has gone."""
        with self._changed:
            if identity in self._controls:
                self._controls[identity].wire.shut()
            self._controls[identity] = Control(wire, self._at_work)

    def wires(self) -> list[Wire]:
        """Return the connections. Takes no lock: for a forked child."""
        return [control.wire for control in self._controls.values()]

    def has_lost(self) -> bool:
        """Return whether any has ended, heard of or not."""
        with self._changed:
            return any(control.has_ended() for control in self._controls.values())

    def hear(self, identity: str, wire: Wire) -> None:
        """Take what has come from one over its wire. Raises ControlEndedError."""
        control = self._controls.get(identity)
        if control is None or control.wire is not wire:
            raise ControlEndedError
        pulse = control.hear()
        if pulse is not None:
            with self._changed:
                self._pulses[identity] = pulse
                self._changed.notify_all()

    def ask(self, timeout_s: float) -> dict[str, Pulse | None]:
        """Ask every other end for a sign of life; None for those that gave none in time.

        Only the time in which this process runs counts: one that was stopped itself has heard nobody meanwhile. Returns
        early, what has come, once they are closed. One thread at a time.
        """
        with self._changed:
            self._pulses = {}
            asked = {identity: each for identity, each in self._controls.items() if not each.has_ended()}
        for control in asked.values():
            control.ask()
        left_s = timeout_s
        with self._changed:
            while not self._closed and self._pulses.keys() < asked.keys() and left_s > 0:
                slice_s, begun = min(left_s, _SLICE_S), time.monotonic()
                self._changed.wait(slice_s)
                left_s -= min(slice_s, time.monotonic() - begun)
            if self._closed:
                return dict(self._pulses)
            return {identity: self._pulses.get(identity) for identity, each in asked.items() if not each.has_ended()}

    def close(self) -> list[Wire]:
        """Let go of the connections, and return them."""
        with self._changed:
            self._closed = True
            controls, self._controls = self._controls, {}
            self._changed.notify_all()
            return [control.wire for control in controls.values()]
