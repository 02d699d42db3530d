"""A graph over four echoing hosts loses one and goes on with three.

python examples/host_loss.py
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from cgexec import GraphExecutor, JobPreempted, JobSucceeded, fan_out


@ray.remote(num_cpus=0)
class EchoActor:
    def echo(self, message):
        return message


def main() -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actors = [EchoActor.remote() for _ in range(4)]
    with GraphExecutor(actors, fan_out("echo"), name="echo") as graph:
        print(graph.execute("ping").result)

        ray.kill(actors[0])  # returns before the actor is dead: the next answers may still come from all four
        while graph.generation == 0:
            match graph.execute("ping"):
                case JobSucceeded(result=result):
                    print(result)
                case JobPreempted(info=info, error=error):
                    print(f"preempted: {type(error).__name__}, lost host {info.lost_hosts[0].info.host_id}")
                case other:
                    raise SystemExit(f"cannot go on: {other}")

        print(f"generation {graph.generation}, hosts {[host.host_id for host in graph.hosts]}")
        assert graph.actors == actors[1:]
        print(graph.execute("pong").result)
    ray.shutdown()


if __name__ == "__main__":
    main()
