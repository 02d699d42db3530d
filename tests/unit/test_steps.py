"""One step of one execution, the long way and the short one: what comes out is the same, and nothing is held on to."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tracing import raised_at

from cgexec.engine import payload
from cgexec.engine.failures import Failure, capture, decode_failures, encode_failures
from cgexec.engine.frames import Encoded, Frame, Kind
from cgexec.engine.reports import OutputPort
from cgexec.engine.steps import LoopEndedError, Step, Taken

ORIGIN = OutputPort(2, "step")
GENERATION = 3


class EndError(Exception):
    """No more frames come."""


def frame_of(value: Any, execution: int) -> Frame:
    kind, data, buffers = payload.encode(value)
    return Frame(kind, GENERATION, execution, data, buffers)


def error_frame(execution: int) -> Frame:
    return Frame(Kind.ERROR, GENERATION, execution, encode_failures([failure_of("before")]).payload)


def failure_of(text: str) -> Failure:
    return capture(ValueError(text), OutputPort(0, "earlier"), None)


def the_long_way(step: Step, instance: Any, frames: Iterator[Frame], put: Callable[[Encoded, int], None]) -> None:
    for due, frame in enumerate(frames):
        result, failed = step.call(instance, [Taken.from_frame(frame)], due, lambda values: (values, {}))
        encoded = step.put(instance, result, failed, [True])[0][0]
        assert encoded is not None
        put(encoded, frame.execution)
        del frame, result, encoded


def the_short_way(step: Step, instance: Any, frames: Iterator[Frame], put: Callable[[Encoded, int], None]) -> None:
    def next_frame() -> Frame:
        for frame in frames:
            return frame
        raise EndError

    with pytest.raises(EndError):
        step.serve(instance, next_frame, lambda encoded, _value, execution: put(encoded, execution))


Way = Callable[[Step, Any, Iterator[Frame], Callable[[Encoded, int], None]], None]


@pytest.fixture(params=[the_long_way, the_short_way])
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


def answers(way: Way, instance: Any, frames: Sequence[Frame]) -> list[tuple[int, Any]]:
    """Return (execution, value or the failures) for each frame."""
    found: list[tuple[int, Any]] = []

    def put(encoded: Encoded, execution: int) -> None:
        if encoded.kind is Kind.ERROR:
            found.append((execution, decode_failures(encoded.payload)))
        else:
            found.append((execution, payload.decode(encoded)))

    way(Step(ORIGIN, 1, [None]), instance, iter(frames), put)
    return found


class Calls:
    """Does what it was made with, and notes what it was given."""

    def __init__(self, does: Callable[[Any], Any] = lambda value: value) -> None:
        self.does = does
        self.given: list[Any] = []

    def step(self, value: Any) -> Any:
        self.given.append(value)
        return self.does(value)


@pytest.mark.parametrize(
    "value",
    [b"x", b"", bytes(payload.LARGE_BYTES), 7, None, "text", {"a": [1, 2]}, (1, b"2"), {1, 2}, 2**80, ValueError("v")],
    ids=lambda value: f"{type(value).__name__} {len(repr(value))}",
)
def test_a_value_is_given_to_the_method_and_what_it_returns_is_sent(way: Way, value: Any) -> None:
    instance = Calls(lambda given: [given, len(instance.given)])
    found = answers(way, instance, [frame_of(value, execution) for execution in range(3)])
    assert [execution for execution, _ in found] == [0, 1, 2]
    assert repr(instance.given) == repr([value] * 3)
    assert repr([result for _, result in found]) == repr([[value, number] for number in (1, 2, 3)])


def test_arrays_and_functions_go_through_as_well(way: Way) -> None:
    array = np.arange(100_000.0)
    found = answers(way, Calls(lambda given: (given * 2, lambda: "called")), [frame_of(array, 0)])
    ((_, (doubled, function)),) = found
    np.testing.assert_array_equal(doubled, array * 2)
    assert function() == "called"


def test_an_error_is_handed_on_and_nothing_is_called(way: Way) -> None:
    instance = Calls()
    found = answers(way, instance, [error_frame(0), frame_of("next", 1)])
    assert found == [(0, [failure_of("before")]), (1, "next")]
    assert instance.given == ["next"]


@pytest.mark.parametrize("other", [frame_of("stale", 7), error_frame(7)], ids=["a value", "an error"])
def test_what_belongs_to_another_execution_is_an_error_and_nothing_is_called(way: Way, other: Frame) -> None:
    instance = Calls()
    (tag, (failure,)), following = answers(way, instance, [other, frame_of("next", 1)])
    assert (tag, following) == (7, (1, "next"))
    assert "execution 0 met inputs of [7]" in failure.text
    assert instance.given == ["next"]


def raising(error: BaseException) -> Calls:
    def does(value: Any) -> Any:
        if value == "raise":
            raise error
        return value

    return Calls(does)


@pytest.mark.parametrize("error", [ValueError("the text"), StopIteration(1), AttributeError("x")], ids=repr)
def test_what_the_method_raises_is_the_answer_to_that_execution_alone(way: Way, error: Exception) -> None:
    (_, (failure,)), following = answers(way, raising(error), [frame_of("raise", 0), frame_of("next", 1)])
    assert (failure.origin, failure.transfer, failure.actor_class) == (ORIGIN, "", "Calls")
    assert failure.type_name.endswith(type(error).__name__)
    assert "cgexec/engine" not in failure.traceback_text
    assert following == (1, "next")


def test_a_method_that_is_missing_is_an_error_of_each_execution(way: Way) -> None:
    found = answers(way, object(), [frame_of(number, number) for number in range(2)])
    assert ["no attribute 'step'" in failure.text for _, (failure,) in found] == [True, True]


@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), SystemExit(3), GeneratorExit("y")], ids=repr)
def test_what_is_no_exception_ends_it(way: Way, error: BaseException) -> None:
    step, sent = Step(ORIGIN, 1, [None]), []
    with pytest.raises((LoopEndedError, SystemExit)) as caught:
        way(step, raising(error), iter([frame_of("fine", 0), frame_of("raise", 1)]), lambda *each: sent.append(each))
    assert len(sent) == 1
    assert not step.pulse().method
    if isinstance(error, SystemExit):
        assert caught.value is error
    else:
        assert str(caught.value).startswith(f"{type(error).__name__}: ")


class CannotBeLoaded:
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("does not want to be loaded")


def test_what_cannot_be_loaded_and_what_cannot_be_sent_are_errors_of_that_execution_alone(way: Way) -> None:
    instance = Calls(lambda value: threading.Lock() if value == "lock" else value)
    frames = [frame_of(CannotBeLoaded(), 0), frame_of("lock", 1), frame_of("next", 2)]
    (_, (unloaded,)), (_, (unsent,)), following = answers(way, instance, frames)
    assert "what step() of host 2 was to be given cannot be used" in unloaded.transfer
    assert "does not want to be loaded" in unloaded.text
    assert "what step() of host 2 returned, a lock, cannot be sent" in unsent.transfer
    assert following == (2, "next")
    assert instance.given == ["lock", "next"]


def test_the_step_says_whether_it_is_in_its_method(way: Way) -> None:
    step, seen = Step(ORIGIN, 1, [None]), []

    class Looks:
        def __reduce__(self) -> Any:
            seen.append(step.pulse().method)  # as it is serialised
            return _refuse, ()

    def does(value: Any) -> Any:
        seen.append(step.pulse().method)
        return Looks() if value == 0 else 1 / 0

    way(step, Calls(does), iter([frame_of(0, 0), frame_of(1, 1)]), lambda *_: seen.append(step.pulse().method))
    assert seen == ["step", None, None, "step", None]


class Thing:
    """Something whose end can be seen."""


def test_an_error_that_is_kept_holds_nothing_but_the_frames_it_was_raised_in(way: Way) -> None:
    kept: list[BaseException] = []

    def does(_value: Any) -> Any:
        try:
            raise ValueError("kept")
        except ValueError as error:
            kept.append(error)
            raise

    def run() -> weakref.ref[Any]:
        ours = Thing()
        way(Step(ORIGIN, 1, [None]), Calls(does), iter([frame_of(0, 0)]), lambda *_: ours and None)
        return weakref.ref(ours)

    assert run()() is None
    assert len(kept) == 1


def test_nothing_of_an_execution_is_held_while_the_next_is_waited_for(way: Way) -> None:
    refs: list[weakref.ref[Any]] = []

    class Instance:
        def step(self, value: Any) -> Any:
            result = Thing()
            refs.extend([weakref.ref(value), weakref.ref(result)])
            return result

    def frames() -> Iterator[Frame]:
        for execution in range(2):
            yield Frame(Kind.VALUE, GENERATION, execution, pickle.dumps(Thing()))
            assert [ref() for ref in refs] == [None] * len(refs) != []

    way(Step(ORIGIN, 1, [None]), Instance(), frames(), lambda *_: None)
    assert len(refs) == 4


class Lease:
    """An array that is used for something else as soon as nobody has it any more."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        return np.asarray, (self.array,)

    def __del__(self) -> None:
        self.array[:] = -1


@pytest.mark.parametrize("size", [8, payload.LARGE_BYTES])
def test_a_result_lives_until_its_buffers_have_been_sent(way: Way, size: int) -> None:
    pool = np.zeros(size)

    def does(value: Any) -> Any:
        pool[:] = value
        return Lease(pool)

    sent: list[Any] = []

    def put(encoded: Encoded, _execution: int) -> None:
        sent.append(np.frombuffer(bytes(encoded.buffers[0])))

    way(Step(ORIGIN, 1, [None]), Calls(does), iter([frame_of(float(number), number) for number in range(3)]), put)
    for number, array in enumerate(sent):
        np.testing.assert_array_equal(array, np.full(size, float(number)))
    assert len(sent) == 3
    assert pool[0] == -1


class Watched(Step):
    """A step whose hand-over can be looked into."""

    def _answers(self, instance: Any, passing: list[Any]) -> Any:
        self.passing = passing
        return super()._answers(instance, passing)


def interrupted_at(place: int) -> bool:
    """Raise at the n-th instruction of the loop that calls the method; returns whether there are as many."""
    step, frames = Watched(ORIGIN, 1, [None]), [frame_of(number, number) for number in range(3)]
    answers: list[tuple[int, Any]] = []

    def next_frame() -> Frame:
        assert step.passing == []
        if not frames:
            raise EndError
        return frames.pop(0)

    def put(encoded: Encoded, _value: Any, execution: int) -> None:
        answers.append((execution, None if encoded.kind is Kind.ERROR else payload.decode(encoded)))

    error = RuntimeError("a signal handler did that")
    with raised_at(place, "opcode", lambda code: code is Step._answers.__code__, error) as seen:
        try:
            step.serve(Calls(lambda given: ["answer", given]), next_frame, put)
        except EndError:
            assert [execution for execution, _ in answers] == [0, 1, 2]
        except RuntimeError:
            pass  # in between: the loop ends with it
    assert all(answer in (None, ["answer", execution]) for execution, answer in answers)
    return seen[0] >= place


def test_an_interruption_leaves_nothing_of_its_execution_to_the_next() -> None:
    place = 1
    while interrupted_at(place):
        place += 1
    assert place > 50


def test_what_was_received_is_let_go_of_before_the_method_is_called() -> None:
    received = memoryview(pickle.dumps(["a large list"]))
    ref = weakref.ref(received)
    frames = [Frame(Kind.VALUE, GENERATION, 0, received)]
    del received

    def pop() -> Iterator[Frame]:
        while frames:
            yield frames.pop()

    seen: list[Any] = []
    the_short_way(Step(ORIGIN, 1, [None]), Calls(lambda _value: seen.append(ref())), pop(), lambda *_: None)
    assert seen == [None]
