"""Stages of a small network in float64, and the same network in one process to hold them against.

Layer s is ``tanh(x @ weights + bias)``, the last one linear; the loss of a microbatch is half its summed squares. The
gradient of a step is the sum over its microbatches.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np
from ray import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the hosts' processes cannot import it

WIDTH, ROWS, RATE = 5, 3, 0.05


class Layer:
    """One layer, and what it keeps of each microbatch."""

    def __init__(self, number: int, is_last: bool) -> None:
        made = np.random.default_rng(number)
        self.is_last = is_last
        self.weights = made.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
        self.bias = made.normal(size=WIDTH) / 10
        self.start_step()

    def start_step(self) -> None:
        self.kept: dict[int, Any] = {}
        self.raw: dict[int, Any] = {}
        self.gradients: dict[int, Any] = {}

    def forward(self, microbatch, inputs, target=None):
        outputs = inputs @ self.weights + self.bias
        if not self.is_last:
            outputs = np.tanh(outputs)
        self.kept[microbatch] = inputs, outputs, target
        return 0.5 * float(np.sum((outputs - target) ** 2)) if self.is_last else outputs

    def backward_input(self, microbatch, gradient):
        _, outputs, target = self.kept[microbatch]
        raw = outputs - target if self.is_last else gradient * (1 - outputs**2)
        self.raw[microbatch] = raw
        return raw @ self.weights.T

    def backward_weight(self, microbatch):
        inputs, _, _ = self.kept.pop(microbatch)
        raw = self.raw.pop(microbatch)
        self.gradients[microbatch] = inputs.T @ raw, raw.sum(axis=0)

    def update(self):
        """Take the gradients in the order of the microbatches, so that no schedule rounds otherwise than another."""
        for _, (weights, bias) in sorted(self.gradients.items()):
            self.weights = self.weights - RATE * weights
            self.bias = self.bias - RATE * bias
        self.start_step()


class StageHost:
    """The stages of one host. Records what it was asked to do, and counts the microbatches whose activations live."""

    def __init__(self, stages: list[int], num_stages: int) -> None:
        self.layers = {stage: Layer(stage, stage == num_stages - 1) for stage in stages}
        self.done: list[str] = []
        self.peak = 0

    def forward(self, stage, microbatch, inputs, *target):
        self.done.append(f"{stage}F{microbatch}")
        outputs = self.layers[stage].forward(microbatch, inputs, *target)
        self.peak = max(self.peak, sum(len(layer.kept) for layer in self.layers.values()))
        return outputs

    def backward(self, stage, microbatch, gradient):
        self.done.append(f"{stage}B{microbatch}")
        before = self.layers[stage].backward_input(microbatch, gradient)
        self.layers[stage].backward_weight(microbatch)
        return before

    def backward_input(self, stage, microbatch, gradient):
        self.done.append(f"{stage}I{microbatch}")
        return self.layers[stage].backward_input(microbatch, gradient)

    def backward_weight(self, stage, microbatch):
        self.done.append(f"{stage}W{microbatch}")
        self.layers[stage].backward_weight(microbatch)

    def update(self, step):
        self.done.append(f"update {step}")
        for layer in self.layers.values():
            layer.update()
        return step, sorted(self.layers)

    def get_state(self):
        """Return the weights and biases of each stage, as a snapshot keeps them."""
        return self.weights()

    def set_state(self, state):
        """Be as at the beginning of a step, with these weights."""
        for stage, (weights, bias) in state.items():
            self.layers[stage].weights, self.layers[stage].bias = weights, bias
            self.layers[stage].start_step()

    def weights(self):
        """Return the weights and biases of each stage."""
        return {stage: (layer.weights, layer.bias) for stage, layer in self.layers.items()}

    def what_was_done(self):
        """Return what was asked of this host, in order, and its peak of live activations."""
        return self.done, self.peak


class Mortal(StageHost):
    """Ends at one operation of one step: ``doom`` is (step, operation), ``end`` how."""

    def __init__(self, stages: list[int], num_stages: int, doom: Any = None, end: str = "exit") -> None:
        super().__init__(stages, num_stages)
        self.step, self.doom, self.end = 0, doom, end

    def _meet(self, operation: str) -> None:
        if self.doom == (self.step, operation):
            if self.end == "raise":
                self.doom = None
                raise ArithmeticError(f"in {operation} of step {self.step}")
            if self.end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise SystemExit

    def forward(self, stage, microbatch, inputs, *target):
        self._meet(f"{stage}F{microbatch}")
        return super().forward(stage, microbatch, inputs, *target)

    def backward(self, stage, microbatch, gradient):
        self._meet(f"{stage}B{microbatch}")
        return super().backward(stage, microbatch, gradient)

    def backward_input(self, stage, microbatch, gradient):
        self._meet(f"{stage}I{microbatch}")
        return super().backward_input(stage, microbatch, gradient)

    def backward_weight(self, stage, microbatch):
        self._meet(f"{stage}W{microbatch}")
        return super().backward_weight(stage, microbatch)

    def update(self, step):
        self._meet("update")
        if step != self.step:
            raise AssertionError(f"step {step} is asked of a state that has seen {self.step}")
        self.step += 1
        return super().update(step)

    def get_state(self):
        return self.step, super().get_state()

    def set_state(self, state):
        self.step, weights = state
        super().set_state(weights)


class SlowToUpdate(Mortal):
    """Goes on with a step for a while after another host has failed in it."""

    def update(self, step):
        if 2 in self.layers:
            time.sleep(0.5)
        return super().update(step)


class Rank:
    """One of several hosts of a stage: adds what tells it apart, and notes the rows it is given."""

    def __init__(self, label: int) -> None:
        self.label, self.given = label, []

    def step(self, rows):
        self.given += list(rows[:, 0])
        return np.concatenate([rows, np.full((len(rows), 1), self.label)], axis=1)

    def what_was_given(self):
        return self.given


class Noting:
    """Notes what it is given."""

    def __init__(self, label: int) -> None:
        self.label = label
        self.given: list[Any] = []

    def note(self, *given):
        self.given.append(given)
        if given == ("raise",):
            raise ValueError("as asked")
        return self.label

    def what_was_given(self):
        return self.given


def data(step: int, num_microbatches: int) -> tuple[list[Any], list[Any]]:
    """Return the microbatches and targets of a step, of which no two are alike."""
    made = np.random.default_rng([step, num_microbatches])
    batch = made.normal(size=(2, num_microbatches, ROWS, WIDTH))
    return list(batch[0]), list(batch[1])


def in_one_process(num_stages: int, num_microbatches: int, num_steps: int) -> tuple[list[list[float]], Any]:
    """Return the losses of every step, and the weights after the last one."""
    layers = [Layer(stage, stage == num_stages - 1) for stage in range(num_stages)]
    losses = []
    for step in range(num_steps):
        losses.append([])
        for microbatch, (inputs, target) in enumerate(zip(*data(step, num_microbatches), strict=True)):
            for layer in layers[:-1]:
                inputs = layer.forward(microbatch, inputs)
            losses[-1].append(layers[-1].forward(microbatch, inputs, target))
            gradient = None
            for layer in reversed(layers):
                gradient = layer.backward_input(microbatch, gradient)
                layer.backward_weight(microbatch)
        for layer in layers:
            layer.update()
    return losses, {stage: (layer.weights, layer.bias) for stage, layer in enumerate(layers)}
