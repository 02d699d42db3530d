"""What a graph may have left behind on this machine: processes, sockets, shared memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended.

    Its first thread ends before the others do, and what it has open is closed by the last.
    """
    return any(state not in "ZX" for state in thread_states(pid))


def thread_states(pid: int) -> list[str]:
    """Return the state of each thread of a process, a letter as in ``proc(5)``; none if there is no such process."""
    states = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                states.append((thread / "stat").read_text().rsplit(") ", 1)[1][0])
    return states


def left_open(pids: Iterable[int]) -> list[str]:
    """Return what processes hold of graphs: sockets (those accepted have their listener's name) and shared memory."""
    named = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if "@cgexec-" in line}
    held = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it is just ending
            held += [f"process {pid}: {target}" for target in open_files(pid) if _is_of_a_graph(target, named)]
    return held


def open_files(pid: int) -> list[str]:
    """Return what each descriptor of a process stands for.

    Raises:
        FileNotFoundError: there is no such process.
    """
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            targets.append(str(descriptor.readlink()))
    return targets


def _is_of_a_graph(target: str, named: set[str]) -> bool:
    return target.startswith("/memfd:cgexec") or target.removeprefix("socket:[").rstrip("]") in named
