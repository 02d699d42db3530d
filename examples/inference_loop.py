"""A two-stage classifier over four hosts serves handwritten digits, and goes on when one of them is lost.

    python examples/inference_loop.py
    python examples/inference_loop.py --kill-after 100

The network has two layers. Hosts 0 and 1 hold the first, hosts 2 and 3 the second; every request passes one host of
each stage. An execution carries two requests, one for each lane:

    image a ── stage 0 (host 0) ── stage 1 (host 2) ── class of a
    image b ── stage 0 (host 1) ── stage 1 (host 3) ── class of b

When a host is lost, the one that holds the same layer serves both lanes. When a layer has no host left the builder
raises and the graph fails: a request never skips a layer. Inference may be repeated, so what was in flight at the loss
is simply sent again.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from cgexec import GraphExecutor, JobPreempted, JobSucceeded

STAGE_OF_HOST = (0, 0, 1, 1)
LANES = 2


@ray.remote(num_cpus=0)
class Stage:
    """One layer of the network: a matrix, a bias, and what follows. Takes one image, or one in each row."""

    def __init__(self, weights, bias, last):
        self.weights, self.bias, self.last = weights, bias, last

    def forward(self, activations):
        outputs = activations @ self.weights + self.bias
        return outputs.argmax(axis=-1) if self.last else np.maximum(outputs, 0.0)


def build(inp, actors, infos):
    """Bind each lane through one living host of every stage."""
    replicas = [[a for a, info in zip(actors, infos, strict=True) if STAGE_OF_HOST[info.host_id] == s] for s in (0, 1)]
    for stage, living in enumerate(replicas):
        if not living:
            raise RuntimeError(f"no host is left that holds the layer of stage {stage}")
    lanes = []
    for lane in range(LANES):
        node = inp[lane]
        for living in replicas:
            node = living[lane % len(living)].forward.bind(node)
        lanes.append(node)
    return lanes


def train():
    """Train the classifier on the digits that ship with scikit-learn; return its layers and the test set."""
    images, classes = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, classes, test_size=0.25, random_state=0)
    train_images, test_images, train_classes, test_classes = split
    model = MLPClassifier(hidden_layer_sizes=(64,), max_iter=800, random_state=0).fit(train_images, train_classes)
    layers = list(zip(model.coefs_, model.intercepts_, strict=True))
    return layers, test_images, test_classes, model.predict(test_images)


def serve(graph, images, kill_after):
    """Send every image through the graph, two at a time; return the classes, the latencies and how many were resent."""
    answers, latencies, resent = {}, [], 0
    for first in range(0, len(images), LANES):
        pair = [index % len(images) for index in range(first, first + LANES)]
        if kill_after is not None and first <= kill_after < first + LANES:
            print(f"killing host {graph.hosts[0].host_id} after {first} images")
            ray.kill(graph.actors[0])
        while True:
            started = time.perf_counter()
            match graph.execute(*(images[index] for index in pair)):
                case JobSucceeded(info=info, result=result):
                    latencies.append(time.perf_counter() - started)
                    answers.update(zip(pair, result, strict=True))
                    break
                case JobPreempted(info=info):
                    resent += 1
                    print(f"preempted: lost host {info.lost_hosts[0].info.host_id}; sending the pair again")
                case other:
                    raise SystemExit(f"cannot go on: {other}")
    return [answers[index] for index in range(len(images))], latencies, resent


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve handwritten digits over four hosts.")
    parser.add_argument("--kill-after", type=int, metavar="N", help="kill a host after N images")
    options = parser.parse_args()

    layers, images, classes, expected = train()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actors = [Stage.remote(*layers[stage], last=stage == len(layers) - 1) for stage in STAGE_OF_HOST]
    with GraphExecutor(actors, build, name="digits") as graph:
        graph.execute(images[0], images[1])  # the first execution warms everything up
        served, latencies, resent = serve(graph, images, options.kill_after)
        hosts = [host.host_id for host in graph.hosts]
        print(f"{len(served)} images, {resent} pairs resent, generation {graph.generation}, hosts {hosts}")
    ray.shutdown()

    accuracy = float(np.mean(np.asarray(served) == classes))
    differing = int(np.sum(np.asarray(served) != expected))
    milliseconds = sorted(latency * 1e3 for latency in latencies)
    p99 = milliseconds[int(len(milliseconds) * 0.99)]
    print(f"accuracy {accuracy:.4f}, {differing} answers differ from the model run in one process")
    print(f"p50 {statistics.median(milliseconds):.2f} ms, p99 {p99:.2f} ms per pair")


if __name__ == "__main__":
    main()
