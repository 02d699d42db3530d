"""What every benchmark does alike: its options, its Ray, and its figures in a file."""

import argparse
import json
import os
import platform

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported

import ray


def options(description):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well")
    return parser.parse_args()


def start_ray():
    """Start a Ray of one's own."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def write(path, results):
    """Write the figures, and what they were measured on, to a file if there is a path."""
    if path:
        about = {"python": platform.python_version(), "ray": ray.__version__, "cores": os.cpu_count()}
        with open(path, "w") as file:
            json.dump({"about": about, "results": results}, file, indent=1)


@ray.remote(num_cpus=0)
class Echo:
    """The actor that is called."""

    def echo(self, message):
        return message
