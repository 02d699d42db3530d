"""The inputs and outputs of a graph as the caller's values: what every engine does alike at the driver's end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from cgexec.engine import payload
from cgexec.engine.failures import as_exception, capture, decode_failures
from cgexec.engine.frames import Bytes, Encoded, Kind
from cgexec.engine.protocol import GraphSpec, Output, OutputError, OutputValue
from cgexec.engine.reports import OutputPort
from cgexec.engine.steps import Arrived, Taken
from cgexec.interruption import is_interruption
from cgexec.isolation import Outcome, apart
from cgexec.texts import as_plain_exception, told

T = TypeVar("T")

_ERROR = Kind.ERROR

Key = int | str | None  # an input: its position or its keyword, None for the whole input


def encoded_inputs(
    spec: GraphSpec, ends: Iterable[tuple[Key, Callable[[Any], Any]]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the value for each of ``ends``, (which input, how to serialise it), ready to be sent; nothing is sent.

    Raises:
        TypeError: the graph does not take such arguments, or one cannot be serialised; names it.
    """
    spec.inputs.check(args, kwargs)
    encoded = []
    for key, encode in ends:
        value = args[key or 0] if key is None or isinstance(key, int) else kwargs[key]
        ready = None
        if encode is payload.encode:
            try:
                ready = payload.encode_plain(value)
            except Exception as error:
                if is_interruption(error):
                    raise  # else there is no memory for it, say: the longer way has words for that
        encoded.append(ready or _ready(key, encode, value))
    return encoded


def kept_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments serialised, for ``encoded_inputs`` to take again and again: they do not change any more.

    Raises:
        TypeError: one cannot be serialised; names it.
    """
    only = len(args) == 1 and not kwargs
    kept_args = [_kept(None if only else place, value) for place, value in enumerate(args)]
    return kept_args, {name: _kept(name, value) for name, value in kwargs.items()}


def _kept(key: Key, value: Any) -> Encoded:
    return payload.kept(_ready(key, payload.encode, value))


def _ready(key: Key, encode: Callable[[Any], T], value: Any) -> T:
    ready, error = apart(partial(encode, value))
    if error is None:
        return cast("T", ready)
    if is_interruption(error):
        raise error
    name = "the input" if key is None else f"input {key!r}"
    raise TypeError(f"{name} cannot be serialised: {told(error)}") from error


def _errors(failures: Bytes) -> OutputError:
    first, *others = [
        OutputError(as_exception(failure), *((o.host_id, o.method) if (o := failure.origin) else (None, None)))
        for failure in decode_failures(failures)
    ]
    return OutputError(first.error, first.host_id, first.method, tuple(others))


def output_of(arrived: Arrived, port: OutputPort, run: Callable[[Callable[[], Any]], Outcome[Any]] = apart) -> Output:
    """Return what has arrived from the output ``port`` as a value or as an error. ``run``: an ``Apart``."""
    load: Callable[[], Any]
    if isinstance(arrived, Taken):
        failures, load = arrived.failures, arrived.value
    else:
        if arrived.kind in payload.NOBODYS_CODE:
            try:
                return OutputValue(payload.decode(arrived))
            except Exception as error:
                if is_interruption(error):
                    raise  # else it is no such value, or there is no memory for it: the longer way has words for that
        failures = arrived.payload if arrived.kind is _ERROR else None
        load = partial(payload.decode, arrived)
    if failures is not None:
        return _errors(failures)
    value, raised = run(load)
    if raised is None:
        return OutputValue(value)
    if is_interruption(raised):
        raise raised
    what = f"what {port.method}() of host {port.host_id} returned cannot be loaded"
    return OutputError(as_exception(capture(as_plain_exception(raised), port, None, what)), port.host_id, port.method)
