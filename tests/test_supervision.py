"""The job types between real Ray processes: sentinels, boxed references, exceptions, reports to a parent."""

import pytest
import ray
from conftest import eventually
from workers import Child, Parent

from cgexec import (
    DONE,
    JobError,
    JobInfo,
    JobPreempted,
    RefBox,
    StopwatchActor,
    UnpicklableExceptionError,
    current_actor_handle,
    handle_ray_error,
    log_failures_to,
    print_remote_raise,
)

INFO = JobInfo(name="job", state="running", kind="test")


@pytest.fixture
def child(local_ray):
    actor = ray.remote(Child).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)


def test_done_is_done_in_every_process(child):
    seen_there, came_back = ray.get(child.end_of_stream.remote(DONE))
    assert seen_there
    assert came_back is DONE


def test_an_actor_finds_its_own_handle_and_a_driver_has_none(child):
    assert ray.get(child.myself.remote()) == child
    with pytest.raises(RuntimeError, match="outside an actor"):
        current_actor_handle()


def test_a_boxed_reference_is_not_resolved_on_the_way(child):
    reference = ray.put("value")
    assert ray.get(child.unbox.remote(RefBox(reference))) == (True, "value")


def test_an_exception_crosses_with_its_cause_and_its_traceback(child):
    info = ray.get(child.failure.remote("chained"))
    with pytest.raises(ValueError, match="the effect") as caught:
        info.reraise()
    assert isinstance(caught.value.__cause__, KeyError)
    assert "_fail" in [entry.name for entry in caught.traceback]


@pytest.mark.parametrize(
    ("kind", "name", "text"), [("lock", "HoldsALockError", "a lock"), ("arguments", "NeedsArgumentsError", "1 and 2")]
)
def test_an_exception_that_cannot_cross_leaves_its_name_text_and_traceback(child, kind, name, text):
    _, error, _ = ray.get(child.failure.remote(kind)).restore()
    assert isinstance(error, UnpicklableExceptionError)
    assert error.type_name.endswith(name)
    assert error.text == text
    assert "_fail" in error.traceback_text


@pytest.mark.parametrize("suppress", [False, True])
def test_a_parent_hears_of_its_childs_failure(child, suppress):
    parent = ray.remote(Parent).options(num_cpus=0).remote()
    told = child.fail_and_tell.remote(parent, suppress)
    if suppress:
        assert ray.get(told) == "suppressed"
    else:
        with pytest.raises(ValueError, match="told"):
            ray.get(told)
    ((message, exception),) = eventually(lambda: ray.get(parent.reports.remote()))
    assert "told" in message
    assert "Child" in message
    assert exception == "ValueError"
    ray.kill(parent)


def test_a_failure_outside_an_actor_is_reported_without_a_child(local_ray):
    parent = ray.remote(Parent).options(num_cpus=0).remote()
    with log_failures_to(parent, suppress=True):
        raise LookupError("in the driver")
    ((message, _),) = eventually(lambda: ray.get(parent.reports.remote()))
    assert "(no actor)" in message
    ray.kill(parent)


def test_a_failure_that_cannot_be_reported_is_not_swallowed(local_ray, caplog):
    with pytest.raises(ValueError, match="unheard"), log_failures_to("no parent at all", suppress=True):
        raise ValueError("unheard")
    assert "could not be reported" in caplog.text


def test_a_stopwatch_adds_up(local_ray):
    watch = StopwatchActor.remote()
    for seconds in (1.0, 2.0, 6.0):
        watch.measure.remote("step", seconds)
    assert ray.get(watch.get.remote("step")) == (9.0, 3)
    assert ray.get(watch.average.remote("step")) == 3.0
    assert ray.get(watch.get.remote("nothing")) == (0.0, 0)
    ray.kill(watch)


def test_real_errors_of_ray_get_their_documented_status(child, capsys):
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(child.unbox.remote("not a box"))
    assert isinstance(handle_ray_error(INFO, caught.value), JobError)
    print_remote_raise(caught.value)
    shown = capsys.readouterr().err
    assert "AttributeError" in shown
    assert "unbox" in shown

    victim = ray.remote(Child).options(num_cpus=0).remote()
    ray.get(victim.myself.remote())
    ray.kill(victim)
    error = eventually(lambda: death_of(victim))
    status = handle_ray_error(INFO, error)
    assert isinstance(status, JobPreempted)
    assert status.info is INFO
    assert status.error is error


def death_of(actor):
    """Return the error of a call to a dead actor; None while it lives."""
    try:
        ray.get(actor.myself.remote())
    except ray.exceptions.RayActorError as error:
        return error
    return None
