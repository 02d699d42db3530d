"""Fuzzes what takes in bytes from a peer: ``frames.unpack``, and the frames that a ``Wire`` receives.

Not a test, and not collected as one: run it where ``atheris`` is installed (Linux, CPython 3.11 to 3.13)::

    python tests/fuzz_frames.py unpack -max_total_time=300
    python tests/fuzz_frames.py wire -max_total_time=300

It ends with a traceback, and the input in a file, at the first answer that is neither a frame nor the error that the
docstrings name.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

import atheris

with atheris.instrument_imports(include=["cgexec.engine.frames", "cgexec.engine.wire", "cgexec.engine.segments"]):
    from cgexec.engine.frames import HEADER, Frame, FrameError, Kind, unpack
    from cgexec.engine.segments import Segment
    from cgexec.engine.stream import Stream, WireClosedError
from cgexec.engine.wire import Wire

GENERATION = 3
SEGMENT_BYTES = 1 << 16


def frames_of(data: bytes, most: int) -> bytes:
    """Return up to ``most`` frames with likely headers over any bytes: blind bytes seldom get past a header."""
    provider = atheris.FuzzedDataProvider(data)
    frames = b""
    for _ in range(provider.ConsumeIntInRange(1, most)):
        num_buffers = provider.ConsumeIntInRange(0, 4)
        region = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 300))
        if provider.ConsumeBool():
            lengths = [provider.ConsumeIntInRange(0, 200) for _ in range(num_buffers)]
            region = b"".join(length.to_bytes(8, "little") for length in lengths) + region
        frames += HEADER.pack(
            provider.ConsumeIntInRange(0, max(Kind) + 1),
            provider.ConsumeIntInRange(0, 2),
            provider.PickValueInList([0, 0, 0, 1, 1 << 15]),
            provider.PickValueInList([GENERATION] * 7 + [0]),
            num_buffers,
            provider.PickValueInList([0, 0, 0, 1, 2]),
            provider.ConsumeInt(8) & (1 << 64) - 1,
            max(0, len(region) - provider.PickValueInList([-1, 0, 1, 8 * num_buffers, 8 * num_buffers + 1, 100])),
            len(region) + provider.PickValueInList([0] * 14 + [1, 1 << 20]),
        )
        frames += region
    return frames


def check(frame: Frame, most_bytes: int) -> None:
    """Fail if ``frame`` holds more than was sent."""
    if len(frame.payload) > most_bytes or any(buffer.nbytes > most_bytes for buffer in frame.buffers):
        raise AssertionError(f"more than came in: {frame}")


def fuzz_unpack(data: bytes) -> None:
    raw = data[1:] if data[:1] < b"\x40" else frames_of(data[1:], 1)
    try:
        check(unpack(raw), len(raw))
    except FrameError:
        return


def fuzz_wire(data: bytes) -> None:
    raw = data[1:] if data[:1] < b"\x40" else frames_of(data[1:], 4)
    descriptors = DESCRIPTORS[: len(data) % (len(DESCRIPTORS) + 1)]
    peer, reader = (Stream(end) for end in socket.socketpair())
    peer.give_pipe()
    reader.take_pipe()
    wire = Wire(reader, GENERATION, lambda _: None)
    try:
        for descriptor in descriptors:
            peer.pass_on(descriptor)
        split = int.from_bytes(data[-2:], "little") % (len(raw) + 1)
        peer.write(raw[:split])  # what does not fit at once is left out
        while frame := wire.receive():
            check(frame, max(len(raw), SEGMENT_BYTES))
        peer.write(raw[split:])
        peer.shut()
        while True:
            frame = wire.receive()
            if frame is None:
                reader.wait()
            else:
                check(frame, max(len(raw), SEGMENT_BYTES))
    except WireClosedError:
        return
    finally:
        frame = None
        wire.shut()
        reader.let_go()
        peer.let_go()


SEGMENT = Segment(1, SEGMENT_BYTES)
UNSEALED = os.memfd_create("unsealed", os.MFD_CLOEXEC)
DESCRIPTORS = [SEGMENT.descriptor, UNSEALED, SEGMENT.descriptor]
TARGETS = {"unpack": fuzz_unpack, "wire": fuzz_wire}

if __name__ == "__main__":
    assert fcntl.fcntl(SEGMENT.descriptor, fcntl.F_GET_SEALS)
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
