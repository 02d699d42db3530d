"""The caller's values at the driver's end: for want of memory an execution fails, not a generation."""

from __future__ import annotations

from typing import Any

import pytest

from cgexec import TransferError
from cgexec.engine import payload
from cgexec.engine.frames import Frame, Kind
from cgexec.engine.protocol import GraphSpec, InputSpec, OutputError, OutputValue
from cgexec.engine.reports import OutputPort
from cgexec.engine.values import encoded_inputs, output_of

PORT = OutputPort(1, "step")
SPEC = GraphSpec(InputSpec(1, frozenset()), (PORT,), returns_list=False)
LARGE = bytes(payload.LARGE_BYTES)


def frame(value: Any) -> Frame:
    kind, data, buffers = payload.encode(value)
    return Frame(kind, 0, 0, data, buffers)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_value: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(payload, "decode", refuse)
    monkeypatch.setattr(payload, "encode_plain", refuse)


@pytest.mark.parametrize("value", [b"small", LARGE, [LARGE], 7], ids=["small", "large", "a list", "a number"])
def test_what_has_arrived_is_the_value(value: Any) -> None:
    output = output_of(frame(value), PORT)
    assert isinstance(output, OutputValue)
    assert output.value == value


@pytest.mark.parametrize("kind", [Kind.BYTES, Kind.VALUE])
def test_a_result_for_which_there_is_no_memory_is_an_error_of_its_own(kind: Kind, no_memory: None) -> None:
    output = output_of(Frame(kind, 0, 0, b"", (memoryview(LARGE),)), PORT)
    assert isinstance(output, OutputError)
    assert isinstance(output.error, TransferError)
    assert "what step() of host 1 returned cannot be loaded: MemoryError" in str(output.error)


def test_an_input_for_which_there_is_no_memory_is_named(no_memory: None) -> None:
    with pytest.raises(TypeError, match="the input cannot be serialised: MemoryError"):
        encoded_inputs(SPEC, [(None, payload.encode)], (LARGE,), {})
