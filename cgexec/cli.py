"""The command line: ``python -m cgexec`` or ``cgexec``."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import get_args

from cgexec import chaos, demo
from cgexec.config import GraphConfig, Transport
from cgexec.pipeline import as_text, draw, peak_activations, run, schedule_named
from cgexec.pipeline.schedules import SCHEDULES


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
    try_out = commands.add_parser("chaos", help="meet faults by lot on this machine", description=chaos.__doc__)
    try_out.add_argument("--faults", type=_num_faults, default=50, metavar="N", help="how many (default: 50)")
    try_out.add_argument("--seed", type=int, default=1, metavar="N", help="what to draw them with (default: 1)")
    try_out.add_argument("--transport", choices=get_args(Transport), default="socket", help="(default: socket)")
    try_out.add_argument(
        "--engine", choices=("compiled", "actor_calls"), default="compiled", help="(default: compiled)"
    )
    drawing = commands.add_parser("draw-schedule", help="show what each host of a pipeline does, and when")
    drawing.add_argument("schedule", choices=[schedule.name for schedule in SCHEDULES])
    drawing.add_argument("--stages", type=int, required=True, metavar="S", help="how many hosts")
    drawing.add_argument("--microbatches", type=int, required=True, metavar="M")
    drawing.add_argument("--virtual-stages", type=int, metavar="V", help="stages on each host, if interleaved")
    drawing.add_argument("--out", metavar="FILE", help="write a picture as well: .svg, .png or .pdf")
    for quiet in (try_out, drawing):
        quiet.set_defaults(verbose=False)
    return parser


def _want(parser: argparse.ArgumentParser, library: str, extra: str) -> None:
    if importlib.util.find_spec(library) is None:
        parser.error(f"that wants the library {library}: pip install 'cgexec[{extra}]'")


def _draw_schedule(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.out:
        _want(parser, "matplotlib", "draw")
    try:
        order = schedule_named(options.schedule, options.virtual_stages).order(options.stages, options.microbatches)
    except ValueError as error:
        parser.error(str(error))
    timeline = run(order)
    if options.out:
        try:
            draw(timeline, options.out, title=f"{options.schedule}, {options.microbatches} microbatches")
        except (ValueError, OSError) as error:
            parser.error(str(error))
    print(as_text(timeline))
    print(f"{timeline.bubble:.1%} idle; activations of so many microbatches at most: {peak_activations(order)}")
    if options.out:
        print(f"wrote {options.out}")
    return 0


def _num_faults(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 fault or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on ``argv`` (None: the process's arguments) and return the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, format="%(name)s: %(message)s")
    if options.command == "demo":
        return demo.run(options.hosts, options.address, options.verbose)
    if options.command == "draw-schedule":
        return _draw_schedule(parser, options)
    _want(parser, "rich", "chaos")
    config = GraphConfig(transport=options.transport, engine=options.engine, buffer_size_bytes=10_000)
    return chaos.run(options.faults, options.seed, config)
