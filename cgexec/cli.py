"""The command line: ``python -m cgexec`` or ``cgexec``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from cgexec import demo


def _num_hosts(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError("the demo needs 2 hosts or more: one of them is killed")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cgexec", description="Ray Compiled Graphs that outlive the loss of a host.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("demo", help="lose a host on this machine and go on", description=demo.__doc__)
    show.add_argument("--hosts", type=_num_hosts, default=4, metavar="N", help="how many hosts to start (default: 4)")
    show.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="a Ray cluster to run on (default: $RAY_ADDRESS, or else Ray is started on this machine and ended again)",
    )
    show.add_argument("--verbose", action="store_true", help="print the remote traceback of every failure")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on ``argv`` (None: the process's arguments) and return the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, format="%(name)s: %(message)s")
    return demo.run(options.hosts, options.address, options.verbose)
