"""What the bytes of a wire go through: a pipe on one node, a TCP socket between nodes.

::

    writer ── pipe ───────────── what is written ──────────────> reader     on one node
       └───── Unix socket ────── descriptors; its end ends all ──> ┘

    writer <─ TCP socket ─────── all of it ────────────────────> reader     between nodes

A pipe takes less than half as long as a Unix socket for what is short: 1.1 us against 2.8, written and read. (For 60 kB
it takes a quarter longer: what is large goes through neither, but through shared memory.) Once both ends have proved
themselves over the socket, the writer makes the pipe, and the first that it sends over the socket is the pipe's other
end. It makes none where a signal would end its process if the reader had gone, since writing to a pipe cannot say that
it is not to: then the Unix socket carries all.

Nothing here waits but ``wait``. Descriptors are closed when the last user lets go of the object, never while a thread
may be waiting on one: a descriptor that is reused would bring someone else's data.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress

from cgexec.engine.frames import Bytes

# As plain integers: what an enum's members are combined with is looked up at every use.
DONT_WAIT = int(socket.MSG_DONTWAIT)
NOT_NOW = DONT_WAIT | int(socket.MSG_NOSIGNAL)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_ANCILLARY_BYTES = socket.CMSG_SPACE(array.array("i").itemsize)
_MOST_PIECES = 512  # for one call of the system; Linux takes 1024
_PIPE_BYTES = 1 << 18  # it takes what is too short for shared memory, in one go
_BESIDE = b"+"  # what a descriptor is sent with
_GONE = "the other end has gone"


class WireClosedError(Exception):
    """The other end has gone, this end was shut, or what came in was no frame."""


class _Socket(socket.socket):
    """Closes itself when nobody holds it any more: that is how a wire wants it, and no reason to warn."""

    def __del__(self) -> None:
        self.close()


class Stream:
    """One end of a connection whose other end has proved itself. One thread writes, one reads; any may shut."""

    def __init__(self, sock: socket.socket) -> None:
        self._pipe: int | None = None
        self.sock = _Socket(fileno=sock.detach())
        self.sock.setblocking(True)  # whatever the process's default timeout of sockets is
        self._ended = False  # as the socket has said
        self._end: select.poll | None = None
        self._anything: select.poll | None = None

    def __del__(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)

    def fileno(self) -> int:
        """Return the descriptor that is read, or written."""
        return self.sock.fileno() if self._pipe is None else self._pipe

    def watched(self) -> list[tuple[int, int]]:
        """Return what is to be polled, and for what, to learn that there is something to read, or the end."""
        if self._pipe is None:
            return [(self.sock.fileno(), select.POLLIN)]
        return [(self._pipe, select.POLLIN), (self.sock.fileno(), select.POLLRDHUP)]

    def looked_at(self) -> select.poll:
        """Return what to poll for a moment, for something to read: of an end, ``watched`` tells those who sleep."""
        found = select.poll()
        found.register(self.fileno(), select.POLLIN)
        return found

    def shut(self) -> None:
        """End the connection; idempotent. Wakes whoever waits for something to read, here and at the other end."""
        with suppress(OSError):  # the other end was first
            self.sock.shutdown(socket.SHUT_RDWR)

    def let_go(self) -> None:
        """Close the descriptors, which nobody uses any more, in this process."""
        self.sock.close()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)

    # -- the pipe, and other descriptors -------------------------------------------------------------------------------

    @property
    def is_near(self) -> bool:
        """Whether the other end is a process of the same node, and so may be given a pipe."""
        return self.sock.family == socket.AF_UNIX

    @property
    def passes_descriptors(self) -> bool:
        """Whether there is a way for descriptors: the socket, if it carries nothing else."""
        return self._pipe is not None

    def give_pipe(self) -> None:
        """Have what is written go through a pipe, if there can be one, and tell the reader so: first of all.

        Raises WireClosedError.
        """
        ends: list[int] = []
        with suppress(OSError):  # there is no descriptor left; or no room for a larger one, which does as well
            if signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN:  # as Python has it
                ends += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self.sock.sendmsg([_BESIDE], _rights(ends[0]) if ends else [], NOT_NOW)
            if ends:
                self._pipe = ends.pop()
        except OSError as error:
            raise WireClosedError(str(error)) from error
        finally:
            for descriptor in ends:
                os.close(descriptor)

    def take_pipe(self) -> bool:
        """Take the pipe that the writer gives, if it gives any; False if it has not said so yet.

        Raises WireClosedError.
        """
        try:
            descriptors = self._beside()
        except OSError as error:
            raise WireClosedError(str(error)) from error
        if descriptors is None:
            return False
        if descriptors:
            if not stat.S_ISFIFO(os.fstat(descriptors[0]).st_mode):
                os.close(descriptors[0])
                raise WireClosedError("what was given is no pipe")
            os.set_blocking(descriptors[0], False)
            self._pipe = descriptors[0]
        return True

    def pass_on(self, descriptor: int) -> bool:
        """Send a descriptor, if there is room for it now. Raises WireClosedError."""
        try:
            self.sock.sendmsg([_BESIDE], _rights(descriptor), NOT_NOW)
        except BlockingIOError:
            return False
        except OSError as error:
            raise WireClosedError(str(error)) from error
        return True

    def take_descriptor(self) -> int:
        """Return the next descriptor that was passed on. Raises OSError or LookupError if none has come."""
        found = self._beside() if self._pipe is not None else None
        if not found:
            raise LookupError("no descriptor has come")
        return found[0]

    def _beside(self) -> list[int] | None:
        """Return the descriptor that was sent next, or nothing if none came with it; None if nothing was sent yet."""
        try:
            said, ancillary, _, _ = self.sock.recvmsg(1, _ANCILLARY_BYTES, DONT_WAIT | _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        if not said:
            raise ConnectionResetError(_GONE)
        found = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(content[: len(content) // found.itemsize * found.itemsize])
        for descriptor in found[1:]:  # none of ours
            os.close(descriptor)
        return list(found[:1])

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, at_most: int) -> bytes | None:
        """Return what has come, up to so many bytes; None if nothing has.

        Raises WireClosedError: the connection has ended, and all that came before has been read.
        """
        try:
            data = self.sock.recv(at_most, DONT_WAIT) if self._pipe is None else os.read(self._pipe, at_most)
        except BlockingIOError:
            return self.read(at_most) if self._ends_now() else None
        except OSError as error:
            raise WireClosedError(str(error)) from error
        if not data:
            raise WireClosedError(_GONE)
        return data

    def read_into(self, memory: memoryview) -> int:
        """Read what has come into ``memory``, which is not empty; return how many bytes. Raises as ``read``."""
        try:
            if self._pipe is None:
                num_bytes = self.sock.recv_into(memory, 0, DONT_WAIT)
            else:
                num_bytes = os.readv(self._pipe, [memory])
        except BlockingIOError:
            return self.read_into(memory) if self._ends_now() else 0
        except OSError as error:
            raise WireClosedError(str(error)) from error
        if not num_bytes:
            raise WireClosedError(_GONE)
        return num_bytes

    def _ends_now(self) -> bool:
        """Return whether the connection has ended since it was last asked: what came before is then to be read still.

        Raises WireClosedError if it had ended already, and nothing was left.
        """
        if self._ended:
            raise WireClosedError(_GONE)
        self._ended = self._has_hung_up()
        return self._ended

    def _has_hung_up(self) -> bool:
        """Return whether the socket beside the pipe has ended; without a pipe it says so as it is read or written."""
        if self._pipe is None:
            return False
        if self._end is None:
            self._end = select.poll()
            self._end.register(self.sock, select.POLLRDHUP)
        return bool(self._end.poll(0))

    def wait(self) -> None:
        """Sleep until there is something to read, or the connection has ended."""
        if self._anything is None:
            self._anything = select.poll()
            for descriptor, events in self.watched():
                self._anything.register(descriptor, events)
        self._anything.poll()

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, data: Bytes) -> int:
        """Write as much as there is room for; return how many bytes that was. Raises WireClosedError."""
        try:
            return self.sock.send(data, NOT_NOW) if self._pipe is None else os.write(self._pipe, data)
        except BlockingIOError:
            self._check_reader()
            return 0
        except OSError as error:
            raise WireClosedError(str(error)) from error

    def write_all(self, pieces: Sequence[Bytes]) -> int:
        """Do as ``write`` for several, in order."""
        total = 0
        try:
            while left := behind(pieces, total)[:_MOST_PIECES]:
                if self._pipe is None:
                    total += self.sock.sendmsg(left, (), NOT_NOW)
                else:
                    total += os.writev(self._pipe, left)
        except BlockingIOError:
            self._check_reader()
        except OSError as error:
            raise WireClosedError(str(error)) from error
        return total

    def _check_reader(self) -> None:
        """Raise WireClosedError if the reader has gone: a pipe says so only when nobody there holds it any more."""
        if self._has_hung_up():
            raise WireClosedError(_GONE)


def behind(pieces: Sequence[Bytes], num_bytes: int) -> list[Bytes]:
    """Return what is left of ``pieces`` when their first bytes, so many, have gone."""
    left: list[Bytes] = []
    for piece in pieces:
        if num_bytes >= len(piece):
            num_bytes -= len(piece)
        else:
            left.append(memoryview(piece)[num_bytes:] if num_bytes else piece)
            num_bytes = 0
    return left


def _rights(descriptor: int) -> list[tuple[int, int, array.array[int]]]:
    """Return the control message that passes a descriptor on."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
