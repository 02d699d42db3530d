"""Tensors and Ray's own collectives in a graph of cgexec's. In a session of its own, where torch is installed:

pip install -e '.[test,torch]' && pytest tests/test_torch.py
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import ray
import ray.util
from conftest import Spawner
from ray import cloudpickle

from cgexec import GraphConfig, GraphExecutor, JobSucceeded, RebuildPolicy
from cgexec.testing import kill_process

torch = pytest.importorskip("torch")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what there is not where there are no accelerators
    from ray.experimental.channel.cpu_communicator import CPUCommunicator
    from ray.experimental.collective import allreduce

cloudpickle.register_pickle_by_value(sys.modules[__name__])

NUM_STEPS, ROWS, WIDTH, RATE = 4, 6, 3, 0.1


def data(step: int) -> tuple[Any, Any]:
    made = torch.Generator().manual_seed(step)
    return torch.randn(2 * ROWS, WIDTH, dtype=torch.float64, generator=made), torch.randn(
        2 * ROWS, 1, dtype=torch.float64, generator=made
    )


class Replica:
    """One copy of a model, trained on its half of the rows."""

    def __init__(self, label: int) -> None:
        self.label = label
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4, dtype=torch.float64), torch.nn.Tanh(), torch.nn.Linear(4, 1, dtype=torch.float64)
        )

    def gradient(self, batch: Any) -> Any:
        inputs, targets = batch
        self.model.zero_grad()
        torch.nn.functional.mse_loss(self.model(inputs), targets, reduction="sum").backward()
        return torch.cat([parameter.grad.flatten() for parameter in self.model.parameters()])

    def update(self, gradient: Any) -> Any:
        with torch.no_grad():
            for parameter in self.model.parameters():
                own, gradient = gradient[: parameter.numel()], gradient[parameter.numel() :]
                parameter -= RATE * own.reshape(parameter.shape) / (2 * ROWS)
        return self.weights()

    def weights(self) -> Any:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def set_weights(self, weights: Any) -> None:
        torch.nn.utils.vector_to_parameters(weights, self.model.parameters())

    def double(self, tensor: Any) -> Any:
        return 2 * tensor


def data_parallel(inp: Any, actors: Any) -> list[Any]:
    """Bind a step: each replica's gradient, their sum, and its application."""
    gradients = [actor.gradient.bind(inp[place]) for place, actor in enumerate(actors)]
    sums = allreduce.bind(gradients, transport=CPUCommunicator(len(actors), list(actors)))
    return [actor.update.bind(each) for actor, each in zip(actors, sums, strict=True)]


def in_one_process() -> list[Any]:
    """Return the weights after each step."""
    replica = Replica(0)
    return [replica.update(replica.gradient(data(step))) for step in range(NUM_STEPS)]


def halves(step: int) -> list[Any]:
    inputs, targets = data(step)
    return [(inputs[:ROWS], targets[:ROWS]), (inputs[ROWS:], targets[ROWS:])]


@pytest.fixture(autouse=True)
def _barriers(spawn: Spawner) -> Any:
    """Ray's CPU communicator has an actor of its own, by a name, which Ray leaves alone."""
    yield
    for name in ray.util.list_named_actors():
        ray.kill(ray.get_actor(name))


def test_a_data_parallel_step_with_allreduce_is_the_step_of_one_process(spawn: Spawner, small: GraphConfig) -> None:
    actors = spawn(2, Replica)
    with GraphExecutor(actors, data_parallel, config=small) as graph:
        for step, expected in enumerate(in_one_process()):
            status = graph.execute(*halves(step))
            assert isinstance(status, JobSucceeded), status
            for weights in status.result:
                torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def test_it_goes_on_with_a_new_replica(spawn: Spawner, small: GraphConfig) -> None:
    actors, expected = spawn(2, Replica), in_one_process()

    def bring_up(_generation: int, _infos: Any, live: Any) -> None:
        ray.get(live[1].set_weights.remote(ray.get(live[0].weights.remote())))

    policy = RebuildPolicy(replace=lambda _info: spawn(1, Replica)[0], on_rebuild=bring_up)
    with GraphExecutor(actors, data_parallel, config=small, policy=policy) as graph:
        for step in range(2):
            assert isinstance(graph.execute(*halves(step)), JobSucceeded)
        kill_process(actors[1])
        while graph.generation == 0:
            pass
        for step in (2, 3):
            status = graph.execute(*halves(step))
            assert isinstance(status, JobSucceeded), status
            for weights in status.result:
                torch.testing.assert_close(weights, expected[step], rtol=0, atol=1e-12)


@pytest.mark.parametrize("transport", ["auto", "shm", "cpu communicator"])
def test_hints_of_the_users_stay(spawn: Spawner, small: GraphConfig, transport: str) -> None:
    actors = spawn(2, Replica)

    def build(inp: Any, actors: Any) -> Any:
        chosen = CPUCommunicator(2, list(actors)) if transport == "cpu communicator" else transport
        first = actors[0].double.bind(inp).with_tensor_transport(transport=chosen)
        return actors[1].double.bind(first)

    with GraphExecutor(actors, build, config=small) as graph:
        for number in range(5):
            tensor = torch.arange(3.0) + number
            status = graph.execute(tensor)
            assert isinstance(status, JobSucceeded), status
            torch.testing.assert_close(status.result, 4 * tensor)
