"""The server of the examples: over HTTP, with several clients, what it should not be sent, and a host that dies."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import eventually
from test_examples import EXAMPLES

CLIENTS = 4
NUM_WAITING = 80  # for a host that does not answer, while somebody asks for the health
SLACK_S = 5  # for a machine that is slow meanwhile


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    children = [
        int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if parent_in(stat) == pid
    ]  # fmt: skip
    return children + [each for child in children for each in descendants(child)]


def parent_in(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def hosts_of(server) -> list[int]:
    """Return the processes of the actors that the server's graph runs on."""
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(server.pid)}
    return [pid for pid, title in titles.items() if title.startswith(b"ray::Stage")]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The example, as the README starts it, on a port of its own; ended as a user would, by Ctrl-C."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as stderr, subprocess.Popen(
        [sys.executable, str(EXAMPLES / "serve_inference.py"), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job hands on that it is ignored
    ) as process:  # fmt: skip
        try:
            process.port = port
            line = process.stdout.readline()
            assert "serving on" in line, log.read_text()
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert code == 0, log.read_text()


def ask(server, method="GET", path="/health", body=None):
    """Return the code and the answer to a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


BAD = {
    "not JSON": b"{images: 1",
    "not UTF-8": b"\xff\xfe",
    "no object": b"[1, 2]",
    "no images": b"{}",
    "ragged": json.dumps({"images": [[0] * 64, [0] * 63]}).encode(),
    "one image, not a list of them": json.dumps({"images": [0] * 64}).encode(),
    "too small": json.dumps({"images": [[0] * 63]}).encode(),
    "no numbers": json.dumps({"images": [["a"] * 64]}).encode(),
    "none": json.dumps({"images": []}).encode(),
    "out of range": json.dumps({"images": [[17] * 64]}).encode(),
    "not a number": b'{"images": [[' + b"NaN, " * 63 + b"NaN]]}",
    "nested without end": b"[" * 100_000,
    "strings of digits": json.dumps({"images": [["3"] * 64]}).encode(),
    "booleans": json.dumps({"images": [[True] * 64]}).encode(),
    "beyond any number": b'{"images": [[' + b"0, " * 63 + b"9" * 401 + b"]]}",
}


def test_what_is_no_image_is_refused_with_a_reason_and_the_graph_goes_on(server):
    for name, body in BAD.items():
        code, answer = ask(server, "POST", "/", body)
        assert code == 400, name
        assert len(answer["error"]) > 10, name
    assert ask(server, "PUT", "/", b"{}")[0] == 405
    assert ask(server, "POST", "/no/such/path", b"{}")[0] == 404
    assert ask(server, "POST", "/", b" " * 1_000_001)[0] == 413
    code, answer = ask(server, "POST", "/", json.dumps({"images": [[0] * 64] * 3}))
    assert (code, len(answer["classes"])) == (200, 3)


def test_a_host_dies_under_load_and_no_image_is_given_a_wrong_class(server, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from inference_loop import train

    _, images, _, expected = train()
    assert ask(server) == (200, {"state": "ready", "generation": 0, "hosts": [0, 1, 2, 3], "serves": True})
    victim, *others = hosts_of(server)
    assert len(others) == 3

    def classify(number):
        if number == 150:
            os.kill(victim, signal.SIGKILL)
        return ask(server, "POST", "/", json.dumps({"images": [(images[number] * 16).tolist()]}))

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(classify, range(len(images))))
    assert {code for code, _ in answers} == {200}, [answer for code, answer in answers if code != 200]
    assert [answer["classes"] for _, answer in answers] == [[each] for each in expected]
    assert {answer["attempts"] for _, answer in answers} <= {1, 2}
    healthy = eventually(lambda: (found := ask(server))[0] == 200 and found, 10)
    assert healthy
    assert healthy[1]["generation"] == 1
    assert len(healthy[1]["hosts"]) == 3


def test_health_tells_of_a_host_that_does_not_answer(server):
    before = ask(server)[1]
    assert before["serves"]
    stopped = hosts_of(server)[-1]
    image = json.dumps({"images": [[0] * 64]})
    os.kill(stopped, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(NUM_WAITING + 10) as pool:
            waiting = [pool.submit(ask, server, "POST", "/", image) for _ in range(NUM_WAITING)]
            started = time.monotonic()
            answers = list(pool.map(lambda _: ask(server), range(10)))
            assert time.monotonic() - started < 2 + SLACK_S
            for code, answer in answers:
                assert code == 503
                assert len(answer["hosts"]) == len(before["hosts"]) - 1
            os.kill(stopped, signal.SIGCONT)
            assert {request.result()[0] for request in waiting} <= {200, 503}
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert eventually(lambda: ask(server)[1]["serves"], 10)
