"""A network in four stages learns handwritten digits over Ray actors, and loses one of them on the way.

    python examples/pipeline_training.py --schedule 1f1b
    python examples/pipeline_training.py --schedule zero-bubble-h1 --kill-stage 2 --at-step 100

Each stage is a layer in a process of its own (with the interleaved schedule two processes have two each), and a step
sends eight microbatches through all of them and back. With ``--kill-stage`` the process of that stage ends in the midst
of a step: a new one takes its place, all stages go back to the last snapshot, and the steps since then are run again.
In the end the weights are held against those of the same training in one process: they are the same, to the last bit.
"""

import argparse
import os
import signal

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are not worth a second thread

import numpy as np
import ray
from matplotlib.figure import Figure
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cgexec import JobSucceeded, RebuildPolicy
from cgexec.pipeline import PipelineSnapshots, PipelineTrainer, schedule_named

WIDTHS = (64, 64, 48, 32, 10)
NUM_STAGES = len(WIDTHS) - 1
NUM_MICROBATCHES, ROWS = 8, 16
RATE, MOMENTUM = 0.1, 0.9


class Layer:
    """One layer of the network: a matrix, a bias and ReLU; the last one ends in softmax and cross-entropy."""

    def __init__(self, stage):
        made = np.random.default_rng(stage)
        num_inputs, num_outputs = WIDTHS[stage : stage + 2]
        self.is_last = stage == NUM_STAGES - 1
        self.weights = made.normal(size=(num_inputs, num_outputs)) * np.sqrt(2 / num_inputs)
        self.bias = np.zeros(num_outputs)
        self.speed = np.zeros_like(self.weights), np.zeros_like(self.bias)
        self.start_step()

    def start_step(self):
        self.inputs, self.raw, self.gradients = {}, {}, {}

    def outputs(self, inputs):
        outputs = inputs @ self.weights + self.bias
        return outputs if self.is_last else np.maximum(outputs, 0.0)

    def forward(self, microbatch, inputs, classes=None):
        self.inputs[microbatch] = inputs
        outputs = self.outputs(inputs)
        if not self.is_last:
            self.raw[microbatch] = outputs > 0
            return outputs
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        likely = shifted / shifted.sum(axis=1, keepdims=True)
        rows = np.arange(len(classes))
        self.raw[microbatch] = likely.copy()
        self.raw[microbatch][rows, classes] -= 1.0
        return float(-np.log(likely[rows, classes]).mean())

    def backward_input(self, microbatch, gradient):
        raw = self.raw[microbatch]
        raw = raw / (NUM_MICROBATCHES * ROWS) if self.is_last else raw * gradient
        self.raw[microbatch] = raw
        return raw @ self.weights.T

    def backward_weight(self, microbatch):
        inputs, raw = self.inputs.pop(microbatch), self.raw.pop(microbatch)
        self.gradients[microbatch] = inputs.T @ raw, raw.sum(axis=0)

    def update(self):
        """Take the gradients in the order of the microbatches: a sum of floats depends on it."""
        total = np.zeros_like(self.weights), np.zeros_like(self.bias)
        for _, gradient in sorted(self.gradients.items()):
            total = tuple(one + other for one, other in zip(total, gradient, strict=True))
        self.speed = tuple(MOMENTUM * speed - RATE * each for speed, each in zip(self.speed, total, strict=True))
        self.weights = self.weights + self.speed[0]
        self.bias = self.bias + self.speed[1]
        self.start_step()


@ray.remote(num_cpus=0)
class Stages:
    """The stages of one host. ``dies_at``: the step in which its process ends, None for a long life."""

    def __init__(self, stages, dies_at=None):
        self.layers = {stage: Layer(stage) for stage in stages}
        self.step, self.dies_at = 0, dies_at

    def forward(self, stage, microbatch, inputs, *classes):
        if (self.step, microbatch) == (self.dies_at, NUM_MICROBATCHES // 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layers[stage].forward(microbatch, inputs, *classes)

    def backward(self, stage, microbatch, gradient):
        before = self.layers[stage].backward_input(microbatch, gradient)
        self.layers[stage].backward_weight(microbatch)
        return before

    def backward_input(self, stage, microbatch, gradient):
        return self.layers[stage].backward_input(microbatch, gradient)

    def backward_weight(self, stage, microbatch):
        self.layers[stage].backward_weight(microbatch)

    def update(self, step):
        for layer in self.layers.values():
            layer.update()
        self.step = step + 1

    def get_state(self):
        return self.step, self.weights()

    def set_state(self, state):
        self.step, weights = state
        for stage, layer in self.layers.items():
            layer.weights, layer.bias, layer.speed = weights[stage]
            layer.start_step()

    def weights(self):
        return {stage: (layer.weights, layer.bias, layer.speed) for stage, layer in self.layers.items()}


def steps_of(images, classes, num_steps):
    """Yield the microbatches and classes of each step: the same ones every time this is called."""
    made = np.random.default_rng(0)
    for _ in range(num_steps):
        chosen = made.choice(len(images), NUM_MICROBATCHES * ROWS, replace=False)
        yield np.split(images[chosen], NUM_MICROBATCHES), np.split(classes[chosen], NUM_MICROBATCHES)


def in_one_process(steps):
    """Return the layers after the same training without hosts."""
    layers = [Layer(stage) for stage in range(NUM_STAGES)]
    for microbatches, targets in steps:
        for microbatch, (values, classes) in enumerate(zip(microbatches, targets, strict=True)):
            for layer in layers[:-1]:
                values = layer.forward(microbatch, values)
            layers[-1].forward(microbatch, values, classes)
            gradient = None
            for layer in reversed(layers):
                gradient = layer.backward_input(microbatch, gradient)
                layer.backward_weight(microbatch)
        for layer in layers:
            layer.update()
    return layers


def draw(losses, killed_at, path):
    """Write the curve of the losses."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    axes.plot(losses)
    if killed_at is not None:
        axes.axvline(killed_at, color="black", linestyle=":", label="a stage is killed")
        axes.legend()
    figure.savefig(path)


def options():
    parser = argparse.ArgumentParser(description="Train a network in four stages, and lose one of them.")
    parser.add_argument("--schedule", default="1f1b", help="gpipe, 1f1b (default), interleaved or zero-bubble-h1")
    parser.add_argument("--steps", type=int, default=300, metavar="N")
    parser.add_argument("--snapshot-every", type=int, default=10, metavar="N", help="how many steps (default: 10)")
    parser.add_argument("--kill-stage", type=int, choices=range(NUM_STAGES), metavar="S", help="0 to 3")
    parser.add_argument("--at-step", type=int, default=100, metavar="N", help="when (default: 100)")
    parser.add_argument("--plot", default="loss.png", metavar="FILE", help="(default: loss.png)")
    return parser.parse_args()


def main():
    chosen = options()
    images, classes = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, classes, test_size=0.25, random_state=0)
    train_images, test_images, train_classes, test_classes = split
    schedule = schedule_named(chosen.schedule)
    num_hosts = NUM_STAGES // schedule.stages_per_host
    doomed = None if chosen.kill_stage is None else chosen.kill_stage % num_hosts

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def start(host, dies_at=None):
        return Stages.remote(range(host, NUM_STAGES, num_hosts), dies_at)

    hosts = [start(host, chosen.at_step if host == doomed else None) for host in range(num_hosts)]
    losses = []
    with PipelineTrainer(
        hosts,
        schedule,
        NUM_MICROBATCHES,
        snapshots=PipelineSnapshots(every=chosen.snapshot_every),
        policy=RebuildPolicy(replace=lambda info: start(info.host_id)),
    ) as trainer:
        steps = steps_of(train_images, train_classes, chosen.steps)
        for microbatches, targets in track(steps, f"{schedule.name}, {num_hosts} hosts", total=chosen.steps):
            match trainer.step(microbatches, targets):
                case JobSucceeded(result=result):
                    losses.append(float(np.mean(result.losses)))
                case other:
                    raise SystemExit(f"cannot go on: {other}")
        found = {}
        for weights in ray.get([actor.weights.remote() for actor in trainer.graph.actors]):
            found |= weights
        lost = [host.info.host_id for host in trainer.graph.lost_hosts]
    ray.shutdown()

    layers = [Layer(stage) for stage in range(NUM_STAGES)]
    values = test_images
    for stage, layer in enumerate(layers):
        layer.weights, layer.bias, layer.speed = found[stage]
        values = layer.outputs(values)
    accuracy = float(np.mean(values.argmax(axis=1) == test_classes))
    alone = in_one_process(steps_of(train_images, train_classes, chosen.steps))
    identical = all(
        np.array_equal(layer.weights, other.weights) and np.array_equal(layer.bias, other.bias)
        for layer, other in zip(layers, alone, strict=True)
    )
    draw(losses, chosen.at_step if lost else None, chosen.plot)
    print(f"{len(losses)} steps, hosts lost: {lost}, loss {losses[0]:.3f} to {losses[-1]:.4f}, drawn in {chosen.plot}")
    print(f"test accuracy {accuracy:.4f}")
    print(f"weights identical to those of the training in one process: {identical}")


if __name__ == "__main__":
    main()
