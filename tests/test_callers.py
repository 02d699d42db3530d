"""Many callers: in line for a slot, from coroutines, with callbacks; and executions that are sent again.

Over every engine and transport. Every execution has an input of its own, and every answer is held against it.
"""

import asyncio
import functools
import gc
import random
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from contextlib import suppress
from dataclasses import replace

import pytest
import ray
import uvloop
from conftest import eventually, our_threads
from matrix import Trial, without_orders
from pool import LOCAL, WAYS, check_that_nothing_is_left, check_that_nothing_is_open
from ray import cloudpickle
from ray.exceptions import RayCgraphCapacityExceeded

from cgexec import (
    Execution,
    GraphClosedError,
    GraphExecutor,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    RebuildPolicy,
    as_completed,
    wait,
)
from cgexec.testing import SHAPES, LocalActor, Message, Recorder, kill_process, resume, stop

pytestmark = [pytest.mark.clause("C8"), pytest.mark.num_ways(1)]

EVERY_WAY = {**WAYS, "in-process": LOCAL}
LONG_S = 60.0


@pytest.fixture(params=EVERY_WAY)
def open_trial(request):
    """Return a function that opens a graph over fresh workers; ends by proving that it answers and leaves nothing."""
    way, trials = request.param, []

    def opened(shape="chain", **changes):
        kind = SHAPES[shape]
        if way in WAYS:
            workers, taken = request.getfixturevalue("pool"), sum(len(trial.actors) for trial in trials)
            actors = workers.take(taken + kind.num_hosts)[taken:]
            ray.get([actor.start_over.remote(label) for label, actor in enumerate(actors)])
            pids = [workers.actors[actor] for actor in actors]
        else:
            actors = [LocalActor(Recorder, label) for label in range(kind.num_hosts)]
            pids = [None] * len(actors)
        made = Trial(kind, actors, pids, EVERY_WAY[way].engine)
        policy = RebuildPolicy(probe_timeout_s=2.0, backoff_s=0.01)
        made.graph = GraphExecutor(
            actors, kind.build, name="callers", config=replace(EVERY_WAY[way], **changes), policy=policy
        )
        trials.append(made)
        return made

    yield opened
    for trial in trials:
        if trial.graph.state.value not in ("closed", "failed"):
            message = trial.message()
            assert isinstance(trial.settle(trial.submit(message), message), JobSucceeded)
        trial.graph.close()
    if way in WAYS:
        workers = request.getfixturevalue("pool")
        check_that_nothing_is_open(workers, [actor for trial in trials for actor in trial.actors])
        check_that_nothing_is_left(workers)
    assert eventually(lambda: not our_threads()), our_threads()  # that of a look that was due takes a moment to end


def check(trial, message, status):
    """Hold an answer against its own question."""
    assert isinstance(status, JobSucceeded), status
    assert without_orders(status.result) == trial.shape.answer(message, trial.labels(status.info.generation))


def given_to(actor):
    """Return the numbers of what a worker was given, in order."""
    answer = actor.what_was_given.remote()
    return [number for _, number in (answer.result(10) if isinstance(actor, LocalActor) else ray.get(answer))]


# -- handles -----------------------------------------------------------------------------------------------------------


@pytest.mark.clause("C1")
def test_callbacks_are_called_in_the_order_of_the_outcomes_and_may_do_anything(open_trial, caplog):
    trial = open_trial()
    messages = [trial.message(*(("raise",) if place == 2 else ())) for place in range(4)]
    called, extra = [], []

    def note(execution):
        called.append((execution, threading.current_thread(), execution.status(0)))
        if len(called) == 2:
            message = trial.message()
            extra.append((message, trial.graph.execute(message)))
            raise ZeroDivisionError("a callback that raises")

    stop(trial.actors[0], trial.pids[0])  # what has settled is told of at once, on this thread
    executions = [trial.submit(message) for message in messages]
    for execution in executions:
        execution.add_done_callback(note)
    resume(trial.actors[0], trial.pids[0])
    assert eventually(lambda: len(called) == 4), "nobody waits, and nobody was called"
    assert [execution for execution, _, _ in called] == executions
    for (_, thread, status), message in zip(called, messages, strict=True):
        assert thread is not threading.current_thread()
        if message.orders:
            assert isinstance(status, JobFailed)
        else:
            check(trial, message, status)
    check(trial, *extra[0])
    assert "a callback that raises" in caplog.text
    executions[0].add_done_callback(note)
    assert called[-1][:2] == (executions[0], threading.current_thread()), "it has settled: at once"


def test_several_executions_are_waited_for_at_once_over_several_graphs(open_trial):
    trials = [open_trial("single"), open_trial("single")]
    asked = {}
    for trial in trials * 3:
        message = trial.message(*(("sleep:0.3",) if len(asked) == 0 else ()))
        asked[trial.submit(message)] = trial, message
    first, *_ = asked
    done, not_done = wait(asked, return_when=FIRST_COMPLETED)
    assert done
    assert done | not_done == asked.keys()
    with pytest.raises(TimeoutError, match="have not settled"):
        list(as_completed([first], timeout_s=0))
    seen = list(as_completed(asked))
    assert set(seen) == asked.keys()
    assert len(seen) == len(asked)
    for execution in seen:
        check(*asked[execution], execution.status(0))
    assert wait(asked).not_done == set()


def test_an_execution_stands_where_a_future_is_expected(open_trial):
    trial = open_trial()
    slow, message = trial.message("sleep:0.3"), trial.message()
    future, other = trial.submit(slow).future(), trial.submit(message).future()
    with pytest.raises(FuturesTimeoutError):
        other.result(0)
    assert other.cancel()
    check(trial, slow, future.result(LONG_S))

    async def wrapped():
        return await asyncio.wrap_future(trial.submit(message).future())

    check(trial, message, asyncio.run(wrapped()))


@pytest.mark.clause("C7")
def test_what_nobody_asks_for_is_logged_once_counted_and_not_kept(open_trial, caplog):
    trial = open_trial("single")
    for place in range(12):
        trial.submit(trial.message(*(("raise",) if place % 3 == 0 else ())))
    trial.graph.execute(trial.message("raise"))  # somebody asks
    gc.collect()
    assert eventually(lambda: trial.graph.stats().never_collected == 4)
    assert caplog.text.count("nobody asked what became of execution") == 4
    assert not [each for each in gc.get_objects() if type(each) is Execution and each.final is not None]
    stats = trial.graph.stats()
    assert (stats.submitted, stats.succeeded, stats.failed, stats.in_flight, stats.in_line) == (13, 8, 5, 0, 0)
    assert 0 < stats.latency_s["p50"] <= stats.latency_s["max"] < LONG_S


# -- in line -----------------------------------------------------------------------------------------------------------


@pytest.mark.clause("C2")
def test_threads_and_coroutines_stand_in_one_line_first_come_first_served(open_trial):
    trial = open_trial(max_inflight=1)
    graph, order, answers = trial.graph, [], []
    blocker = trial.submit(trial.message("sleep:0.5"))

    def in_thread(message):
        answers.append((message, graph.submit(message).status(LONG_S)))

    async def from_coroutine(message):
        answers.append((message, await graph.execute_async(message)))

    async def everybody(pool):
        waiting = []
        for place in range(12):
            message = trial.message()
            order.append(message.number)
            if place % 2:
                waiting.append(asyncio.ensure_future(from_coroutine(message)))
            else:
                waiting.append(asyncio.get_running_loop().run_in_executor(pool, in_thread, message))
            while graph.stats().in_line < place + 1:
                await asyncio.sleep(0.001)
        await asyncio.gather(*waiting)

    with ThreadPoolExecutor(6) as pool:
        asyncio.run(everybody(pool))
    assert isinstance(blocker.status(LONG_S), JobSucceeded)
    for message, status in answers:
        check(trial, message, status)
    for actor in trial.actors:
        assert given_to(actor)[1:] == order


@pytest.mark.clause("C5")
def test_try_submit_answers_at_once(open_trial):
    trial = open_trial(max_inflight=2)
    slow, message = trial.message("sleep:0.5"), trial.message()
    first, second = trial.graph.try_submit(slow), trial.graph.try_submit(message)
    started = time.monotonic()
    assert trial.graph.try_submit(trial.message()) is None
    assert time.monotonic() - started < 5
    check(trial, slow, first.status(LONG_S))
    check(trial, message, second.status(LONG_S))
    third = trial.graph.try_submit(message)
    check(trial, message, third.status(LONG_S))
    assert isinstance(trial.graph.try_submit(each for each in ()).status(0), JobFailed)
    trial.graph.close()
    with pytest.raises(GraphClosedError):
        trial.graph.try_submit(message)


@pytest.mark.clause("C5")
def test_a_limit_of_one_is_full_until_its_execution_settles_whoever_has_given_up(open_trial):
    trial = open_trial(max_inflight=1, submit_timeout_s=0.2)
    slow, message = trial.message("sleep:1"), trial.message()
    execution = trial.submit(slow)
    assert execution.status(0.05).info.state == "pending"

    async def given_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(execution.status_async(), 0.05)
        late = await trial.graph.execute_async(trial.message())
        handle = await trial.graph.submit_async(trial.message())
        return [late, await handle]

    for status in (trial.graph.execute(trial.message()), *asyncio.run(given_up())):
        assert isinstance(status, JobError)
        assert isinstance(status.error, RayCgraphCapacityExceeded)
        assert status.info.attempts == 0
    check(trial, slow, execution.status(LONG_S))
    check(trial, message, trial.graph.execute(message))
    assert [given_to(actor) for actor in trial.actors] == [[slow.number, message.number]] * len(trial.actors)


def test_five_hundred_that_nobody_collects_neither_deadlock_nor_pile_up(open_trial):
    trial = open_trial("single")
    for _ in range(500):
        trial.submit(trial.message())
    alive = [each for each in gc.get_objects() if type(each) is Execution]
    assert len(alive) <= 4 + 1
    del alive
    message = trial.message()
    check(trial, message, trial.graph.execute(message))
    assert given_to(trial.actors[0]) == sorted(trial.submitted)


# -- from coroutines ---------------------------------------------------------------------------------------------------


def threads_of(trial, monkeypatch):
    """Note the threads on which anything is done that may block."""
    engine, threads = trial.graph._core.current_engine(), set()

    def noted(real, *args, **kwargs):
        threads.add(threading.get_ident())
        return real(*args, **kwargs)

    may_block = {
        engine: ("encode", "send", "collect", "why_broken", "tear_down"),
        trial.graph._backend: ("build", "probe"),
        ray: ("get", "wait", "kill"),
        time: ("sleep",),
    }
    for owner, names in may_block.items():
        for name in names:
            monkeypatch.setattr(owner, name, functools.partial(noted, getattr(owner, name)))
    return threads


@pytest.mark.clause("C2")
def test_coroutines_get_their_own_answers_and_nothing_blocks_their_event_loop(open_trial, monkeypatch):
    trial = open_trial()
    threads = threads_of(trial, monkeypatch)
    messages = [trial.message(*(("raise",) if place % 7 == 3 else ())) for place in range(200)]

    async def callers():
        async with trial.graph as graph:
            statuses = await asyncio.gather(*(graph.execute_async(message) for message in messages[:150]))
            statuses += [status async for status in graph.map_async(messages[150:180])]
            handles = [await graph.submit_async(message) for message in messages[180:]]
            statuses += [await handle for handle in handles]
            assert (await handles[0].status_async(0)).info.state != "pending"
        return statuses, threading.get_ident()

    statuses, loop_thread = asyncio.run(callers())
    for message, status in zip(messages, statuses, strict=True):
        if message.orders:
            assert isinstance(status, JobFailed)
        else:
            check(trial, message, status)
    assert threads
    assert loop_thread not in threads
    assert trial.graph.state.value == "closed"


@pytest.mark.clause("C4")
def test_a_rebuild_does_not_block_the_event_loop_and_is_awaited(open_trial, monkeypatch):
    """What was in flight is answered for when the graph is open again."""
    trial = open_trial("fan")
    threads = threads_of(trial, monkeypatch)
    victim = trial.message("sleep:3600")

    async def callers():
        lost = asyncio.ensure_future(trial.graph.execute_async(victim, timeout_s=LONG_S))
        while trial.graph.stats().in_flight == 0:
            await asyncio.sleep(0.001)
        killing = threading.Thread(target=trial.befall, args=("killed",))
        killing.start()
        status = await lost
        state = trial.graph.state.value
        message = trial.message()
        after = await trial.graph.execute_async(message)
        killing.join()
        return status, state, message, after, threading.get_ident()

    status, state, message, after, loop_thread = asyncio.run(callers())
    assert isinstance(status, JobPreempted)
    assert state == "ready"
    check(trial, message, after)
    assert after.info.generation == 1
    assert len(threads) >= 2
    assert loop_thread not in threads


@pytest.mark.clause("C5")
def test_an_await_ends_at_its_timeout_and_the_execution_goes_on(open_trial):
    trial = open_trial()
    slow, behind = trial.message("sleep:0.5"), trial.message()

    async def impatient():
        started = time.monotonic()
        pending = await trial.graph.execute_async(slow, timeout_s=0.05)
        looked = await trial.graph.execute_async(behind, timeout_s=0)
        assert time.monotonic() - started < 5
        return [pending, looked]

    for status in asyncio.run(impatient()):
        assert isinstance(status, JobError)
        assert status.info.state == "pending"
    message = trial.message()
    check(trial, message, trial.graph.execute(message))
    assert given_to(trial.actors[-1]) == [slow.number, behind.number, message.number]
    assert trial.graph.stats().succeeded == 3


@pytest.mark.clause("C2")
def test_a_thousand_awaits_of_which_a_third_are_cancelled_while_a_host_dies(open_trial):
    trial, chance = open_trial("fan"), random.Random(5)
    messages = [trial.message() for _ in range(1000)]

    async def one(message):
        return await trial.graph.execute_async(message, timeout_s=LONG_S)

    async def everybody():
        tasks = [asyncio.ensure_future(one(message)) for message in messages]
        unlucky = set(chance.sample(range(1000), 333))
        for place in sorted(unlucky, key=lambda _: chance.random()):
            await asyncio.sleep(0)
            tasks[place].cancel()
            if place % 111 == 0:
                await asyncio.sleep(0.02)
        while trial.graph.stats().succeeded < 50:
            await asyncio.sleep(0.005)
        kill_process(trial.actors[1], trial.pids[1])
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(everybody())
    trial.rebuilt()
    kinds = [type(outcome) for outcome in outcomes]
    assert set(kinds) <= {JobSucceeded, JobPreempted, asyncio.CancelledError}
    assert kinds.count(JobSucceeded) > 100
    for message, outcome in zip(messages, outcomes, strict=True):
        if isinstance(outcome, JobSucceeded):
            check(trial, message, outcome)
    for actor in trial.graph.actors:
        numbers = given_to(actor)
        assert numbers == sorted(set(numbers)), "it was given something twice, or out of turn"


def test_two_event_loops_in_two_threads(open_trial):
    trial = open_trial()
    answers = {}

    async def callers(number):
        messages = [trial.message() for _ in range(40)]
        statuses = await asyncio.gather(*(trial.graph.execute_async(message) for message in messages))
        answers[number] = list(zip(messages, statuses, strict=True))

    threads = [threading.Thread(target=lambda number=number: asyncio.run(callers(number))) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    for message, status in (*answers[0], *answers[1]):
        check(trial, message, status)


def test_under_uvloop(open_trial):
    trial = open_trial()
    messages = [trial.message() for _ in range(50)]

    async def callers():
        return await asyncio.gather(*(trial.graph.execute_async(message) for message in messages))

    loop = uvloop.new_event_loop()
    try:
        for message, status in zip(messages, loop.run_until_complete(callers()), strict=True):
            check(trial, message, status)
    finally:
        loop.close()


@pytest.mark.clause("C5")
def test_closing_settles_what_coroutines_wait_for(open_trial):
    trial = open_trial(max_inflight=1)
    messages = [trial.message("sleep:3600"), trial.message(), trial.message()]

    async def callers():
        tasks = [asyncio.ensure_future(trial.graph.execute_async(message)) for message in messages]
        while trial.graph.stats().in_flight < 1 or trial.graph.stats().in_line < 2:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(trial.graph.close, 0.3)
        statuses = await asyncio.gather(*tasks)
        with pytest.raises(GraphClosedError):
            await trial.graph.execute_async(messages[0])
        return statuses

    statuses = asyncio.run(callers())
    assert [status.info.attempts for status in statuses] == [1, 0, 0]
    for status in statuses:
        assert isinstance(status, JobError)
        assert isinstance(status.error, GraphClosedError)


# -- sent again --------------------------------------------------------------------------------------------------------


@pytest.mark.clause("C4")
@pytest.mark.parametrize("retries", [0, 1, 2])
def test_what_a_death_took_along_is_sent_again_in_order_as_often_as_was_said(open_trial, retries):
    trial = open_trial("fan", retry_preempted=retries)
    first = [trial.message(), trial.message("sleep:3600"), trial.message(), trial.message()]
    executions = [trial.submit(message) for message in first]
    assert isinstance(executions[0].status(LONG_S), JobSucceeded)
    first.append(trial.message())
    executions.append(trial.submit(first[-1]))  # the graph is full again
    trial.befall("killed")
    behind = trial.message()
    executions.append(trial.submit(behind))  # comes after those that are sent again
    statuses = [execution.status(LONG_S) for execution in executions]
    trial.rebuilt()
    check(trial, first[0], statuses[0])
    check(trial, behind, statuses[5])
    for message, status in zip(first[1:], statuses[1:5], strict=True):
        if retries:
            check(trial, message, status)
            assert (status.info.attempts, status.info.generation) == (2, 1)
        else:
            assert isinstance(status, JobPreempted)
            assert (status.info.attempts, status.info.generation) == (1, 0)
    assert trial.graph.stats().retried == (4 if retries else 0)
    for actor in trial.graph.actors:
        numbers = given_to(actor)
        again = [number for number in numbers if numbers.count(number) > 1]
        if not retries:
            assert not again
        last = [number for place, number in enumerate(numbers) if number not in numbers[place + 1 :]]
        assert last == sorted(last), "what was sent again overtook, or was overtaken"


@pytest.mark.clause("C4")
def test_what_no_longer_fits_is_preempted_though_it_could_be_sent_again(open_trial):
    trial = open_trial("scatter", retry_preempted=3)
    execution = trial.submit(trial.message("sleep:3600"))
    trial.befall("killed")
    status = execution.status(LONG_S)
    assert isinstance(status, JobPreempted)
    assert status.info.attempts == 1
    trial.rebuilt()


@pytest.mark.clause("C4")
def test_what_meets_a_death_in_every_generation_is_sent_again_no_more_than_was_said(open_trial):
    trial = open_trial("chain", retry_preempted=1)
    message = replace(trial.message(), orders=dict.fromkeys(range(2), ("sleep:3600",)))
    execution = trial.submit(message)
    for generation in range(2):
        trial.rebuilt(generation)
        assert eventually(lambda: trial.graph.stats().in_flight == 1)
        assert execution.status(0).info.state == "pending"
        trial.befall("killed", generation)
    status = execution.status(LONG_S)
    assert isinstance(status, JobPreempted)
    assert (status.info.attempts, status.info.generation) == (2, 1)
    assert [lost.info.host_id for lost in status.info.lost_hosts] == [1]
    trial.rebuilt(2)


@pytest.mark.clause("C2")
def test_what_is_lost_while_it_is_sent_is_sent_again_once(open_trial, monkeypatch):
    trial = open_trial("fan", retry_preempted=2)
    engine = trial.graph._core.current_engine()
    send = engine.send

    def and_a_host_dies(encoded, timeout_s):
        send(encoded, timeout_s)
        trial.befall("killed")
        assert eventually(lambda: trial.graph._core.current_engine() is not engine)

    monkeypatch.setattr(engine, "send", and_a_host_dies)
    messages = [trial.message() for _ in range(6)]

    async def callers():
        return await asyncio.gather(*(trial.graph.execute_async(message, timeout_s=LONG_S) for message in messages))

    for message, status in zip(messages, asyncio.run(callers()), strict=True):
        check(trial, message, status)
        assert status.info.attempts == (2 if message is messages[0] else 1)
    for actor in trial.graph.actors:
        assert given_to(actor)[-6:] == [message.number for message in messages]
        assert len(given_to(actor)) <= 7


@pytest.mark.clause("C5")
def test_a_stopped_host_is_lost_though_coroutines_keep_deadlines_of_their_own(open_trial):
    trial = open_trial("fan", max_inflight=2)
    trial.befall("stopped", 1)

    async def callers():
        until = time.monotonic() + LONG_S
        while trial.graph.generation == 0 and time.monotonic() < until:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(trial.graph.execute_async(trial.message()), 0.1)

    asyncio.run(callers())
    trial.rebuilt()
    resume(trial.actors[1], trial.pids[1])
    assert [lost.info.host_id for lost in trial.graph.lost_hosts] == [1]


# -- a driver that is an actor or a task, and several graphs -----------------------------------------------------------


def drive(actors, config):
    """Run a graph, from threads and coroutines, and lose a host meanwhile; return (question, answer's labels) pairs."""
    policy = RebuildPolicy(probe_timeout_s=2.0, backoff_s=0.01)
    with GraphExecutor(actors, SHAPES["fan"].build, config=replace(config, retry_preempted=1), policy=policy) as graph:
        statuses = list(graph.map(Message(number) for number in range(10)))

        async def callers():
            tasks = [asyncio.ensure_future(graph.execute_async(Message(number))) for number in range(10, 40)]
            await asyncio.sleep(0)
            ray.kill(graph.actors[1])
            return await asyncio.gather(*tasks)

        statuses += asyncio.run(callers())
        while graph.generation == 0 or graph.state.value != "ready":
            time.sleep(0.005)
        statuses.append(graph.execute(Message(40)))
        return [[(message.number, message.path[0]) for message in status.result] for status in statuses]


class DriverActor:
    """Drives a graph from one of its methods."""

    def drive(self, actors, config):
        """Return what ``drive`` does."""
        return drive(actors, config)


cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.clause("C2")
@pytest.mark.parametrize("driver", ["actor", "task"])
@pytest.mark.parametrize("way", WAYS)
def test_a_graph_is_driven_from_inside_an_actor_or_a_task(pool, way, driver):
    actors = pool.take(4)
    if driver == "task":
        found = ray.get(ray.remote(num_cpus=0)(drive).remote(actors, WAYS[way]), timeout=LONG_S)
    else:
        keeper = ray.remote(num_cpus=0)(DriverActor).remote()
        found = ray.get(keeper.drive.remote(actors, WAYS[way]), timeout=LONG_S)
        ray.kill(keeper)
    before, after = [0, 1, 2, 3], [0, 2, 3]
    for number, answer in enumerate(found):
        assert answer in ([(number, label) for label in before], [(number, label) for label in after])
    assert [label for _, label in found[0]] == before
    assert [label for _, label in found[-1]] == after
    survivors = [actors[label] for label in after]
    with GraphExecutor(survivors, SHAPES["fan"].build, config=WAYS[way]) as graph:
        assert [message.number for message in graph.execute(Message(99)).result] == [99] * 3
    check_that_nothing_is_open(pool, survivors)
    check_that_nothing_is_left(pool)


@pytest.mark.clause("C2")
@pytest.mark.clause("C6")
@pytest.mark.parametrize(
    ("way", "num_graphs"), [("socket", 50), ("ray", 15), pytest.param("calls", 50, marks=pytest.mark.campaign)]
)
def test_graphs_of_one_process_in_turn_on_the_same_actors_and_beside_others(pool, way, num_graphs):
    """One thread opens graph after graph over the same actors, of another shape each time; the others keep theirs."""
    actors, over = pool.take(6), threading.Event()
    shapes = [SHAPES[name] for name in ("fan", "chain", "shared")]

    def in_turn():
        try:
            for number in range(num_graphs):
                shape, message = shapes[number % len(shapes)], Message(number)
                with GraphExecutor(actors[:3], shape.build, name="in turn", config=WAYS[way]) as graph:
                    check_result(graph.execute(message), shape.answer(message, range(3)))
        finally:
            over.set()

    def beside(label):
        shape, number = SHAPES["single"], label * 1_000_000
        with GraphExecutor([actors[label]], shape.build, name=f"beside {label}", config=WAYS[way]) as graph:
            while not over.wait(0.05):
                number += 1
                check_result(graph.execute(Message(number)), shape.answer(Message(number), [label]))
        return number % 1_000_000

    with ThreadPoolExecutor(4) as threads:
        turns = threads.submit(in_turn)
        counts = [threads.submit(beside, label) for label in (3, 4, 5)]
        turns.result()
        assert all(count.result() > 0 for count in counts)
    check_that_nothing_is_open(pool, pool.actors)
    check_that_nothing_is_left(pool)


def check_result(status, right):
    """Hold an answer against the right one."""
    assert isinstance(status, JobSucceeded), status
    assert status.result == right
