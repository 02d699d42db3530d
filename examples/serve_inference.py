"""A Ray Serve deployment answers JSON over HTTP with a graph over four hosts, and goes on when one of them is lost.

    python examples/serve_inference.py                                  # serves until Ctrl-C
    python examples/serve_inference.py --clients 4 --kill-after 100     # asks itself, and kills a host meanwhile

    curl -d '{"images": [[0, 0, 5, ...]]}' http://127.0.0.1:8000/       # 64 numbers from 0 to 16 for each image
    curl http://127.0.0.1:8000/health

The network, its hosts and the builder are those of ``inference_loop.py``. The replica drives the graph from inside an
actor, on its event loop: each request is one execution, half of its images for each lane. Inference may be repeated, so
what was in flight when a host is lost is sent again, and no client notices.
"""

import argparse
import asyncio
import http.client
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from inference_loop import LANES, STAGE_OF_HOST, Stage, build, train
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from cgexec import GraphConfig, GraphExecutor, GraphState, JobSucceeded

PIXELS = 64
MOST_IMAGES = 1000
MOST_BYTES = 1_000_000  # of a request
MOST_AT_ONCE = 64  # requests; more are told to come back later, so that there is always room to ask for the health


def images_in(body: bytes) -> np.ndarray:
    """Return the images of a request, one in each row, scaled to 1. Raises ValueError that says what is wrong."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON that can be read: {error}") from error
    if not isinstance(asked, dict) or "images" not in asked:
        raise ValueError('the body is to be {"images": [...]}')
    try:
        images = np.asarray(asked["images"])
    except ValueError as error:
        raise ValueError(f"the images are not lists of numbers, all of one length: {error}") from error
    if images.dtype.kind not in "iuf":
        raise ValueError("the images are not lists of numbers of an ordinary size")
    if images.ndim != 2 or images.shape[1] != PIXELS or not 1 <= len(images) <= MOST_IMAGES:
        raise ValueError(f"expected 1 to {MOST_IMAGES} images of {PIXELS} numbers, not the shape {images.shape}")
    if not ((images >= 0) & (images <= 16)).all():
        raise ValueError("the numbers are to be from 0 to 16")
    return images / 16.0


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Digits:
    """Tells handwritten digits apart."""

    def __init__(self, layers):
        actors = [Stage.remote(*layers[stage], last=stage == len(layers) - 1) for stage in STAGE_OF_HOST]
        config = GraphConfig(retry_preempted=2, submit_timeout_s=30)
        self.graph = GraphExecutor(actors, build, name="digits", config=config)
        self.at_once = 0
        self.looker = ThreadPoolExecutor(1, "health")
        self.looking: asyncio.Future | None = None

    async def __call__(self, request: Request) -> JSONResponse:
        if request.url.path == "/health":
            return await self.health()
        if request.url.path != "/":
            return JSONResponse({"error": "POST the images to /, or GET /health"}, 404)
        if request.method != "POST":
            return JSONResponse({"error": "POST the images"}, 405)
        body = await request.body()
        if len(body) > MOST_BYTES:
            return JSONResponse({"error": f"{len(body)} bytes: no more than {MOST_BYTES} in one request"}, 413)
        try:
            images = images_in(body)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        if self.at_once >= MOST_AT_ONCE:
            return JSONResponse({"error": f"{self.at_once} requests are being answered; come back later"}, 503)
        self.at_once += 1
        try:
            status = await self.graph.execute_async(*np.array_split(images, LANES))
        finally:
            self.at_once -= 1
        if isinstance(status, JobSucceeded):
            return JSONResponse({"classes": np.concatenate(status.result).tolist(), "attempts": status.info.attempts})
        return JSONResponse({"error": f"{type(status).__name__}: {status.error}"}, 503)

    async def health(self) -> JSONResponse:
        """Say which hosts live, and whether the graph serves: it is ready, and every host that it runs on lives.

        Who asks while somebody else does is given the same answer: it is no older than the second that asking takes.
        """
        if self.looking is None or self.looking.done():
            self.looking = asyncio.get_running_loop().run_in_executor(self.looker, self.graph.check_health, 1.0)
        hosts = await asyncio.shield(self.looking)
        living = [host.host_id for host in hosts if host.healthy]
        state, used = self.graph.state, {host.host_id for host in self.graph.hosts}
        serves = state is GraphState.READY and used <= set(living)
        said = {"state": state.value, "generation": self.graph.generation, "hosts": living, "serves": serves}
        return JSONResponse(said, 200 if serves else 503)

    def actors(self) -> list:
        """Return the actors that serve now, for whoever wants to see what happens when one is lost."""
        return self.graph.actors


def start(port: int):
    """Train, and serve on ``port`` of this machine.

    Returns a handle of the deployment, the test images, their classes, and what the model says in one process.
    """
    layers, images, classes, expected = train()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    return serve.run(Digits.bind(layers), name="digits"), images, classes, expected


def ask(port: int, images) -> dict:
    """Ask the server for the classes of ``images``; return its answer, and its code as "code"."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/", json.dumps({"images": (np.atleast_2d(images) * 16).tolist()}))
        response = connection.getresponse()
        return {**json.loads(response.read()), "code": response.status}
    finally:
        connection.close()


def load(port: int, images, clients: int, kill_after: int | None, kill) -> list[tuple[dict, float]]:
    """Ask for every image, from so many threads; return the answers, and the seconds that each took."""

    def one(number: int) -> tuple[dict, float]:
        if number == kill_after:
            kill()
        started = time.perf_counter()
        return ask(port, images[number]), time.perf_counter() - started

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, range(len(images))))


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve handwritten digits over HTTP.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--clients", type=int, help="ask for every test image from so many threads, and end")
    parser.add_argument("--kill-after", type=int, metavar="N", help="kill a host after N images")
    options = parser.parse_args()

    handle, images, classes, expected = start(options.port)
    try:
        if options.clients is None:
            print(f"serving on http://127.0.0.1:{options.port}/", flush=True)
            threading.Event().wait()
        victim = handle.actors.remote().result()[0]
        asked = load(options.port, images, options.clients, options.kill_after, lambda: ray.kill(victim))
        found = [answer["classes"][0] if answer["code"] == 200 else None for answer, _ in asked]
        differing = sum(one is not None and one != other for one, other in zip(found, expected, strict=True))
        right = float(np.mean([one == other for one, other in zip(found, classes, strict=True)]))
        ordered = sorted(took_s * 1e3 for _, took_s in asked)
        print(f"{len(found)} images from {options.clients} clients, {found.count(None)} requests failed")
        print(f"accuracy {right:.4f}, {differing} answers differ from the model run in one process")
        print(f"p50 {ordered[len(ordered) // 2]:.1f} ms, p99 {ordered[int(len(ordered) * 0.99)]:.1f} ms")
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
