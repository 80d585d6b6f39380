"""The recorded studies from a shell: ``python -m apudae.experiments NAME``.

Each goes on where it was stopped. What is missing, and what made what is there, tells ``status``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .colours import CLASSIFIERS, SETS
from .commands import COMMANDS, PROGRAM, status
from .place import Place


def parser() -> argparse.ArgumentParser:
    """The options of all runs."""
    runs = [f"  {name:18}{command.help}" for name, command in COMMANDS.items()]
    found = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Run a recorded study; it goes on where it was stopped.",
        epilog="\n".join(["runs:", *runs, f"  {'status':18}what there is and what is missing"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place, add = Place(), found.add_argument
    add("name", choices=[*COMMANDS, "status"], metavar="NAME", help="which run, see below")
    add("--root", type=Path, help="folder of the data (default: $APUDAE_DATA)")
    for name, what in (
        ("weights", "where weights go (default: the package's own)"),
        ("results", "where records go (default: the package's own)"),
        ("work", "where what was stopped waits (default: ./runs)"),
    ):
        add(f"--{name}", type=Path, default=getattr(place, name), metavar="FOLDER", help=what)
    add("--profile", choices=("quick", "full"), default="full", help="of the comparison (full)")
    add("--only", nargs="+", metavar="DEFENSE", help="defenses to compare (default: all)")
    add("--data", choices=SETS, default=SETS[0], help="of the runs on CIFAR-10 (the original)")
    add("--folder", type=Path, help="of photographs, one folder for each class")
    told = "of imagenet (the one that needs no download)"
    add("--classifier", choices=CLASSIFIERS, default=CLASSIFIERS[0], help=told)
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    place = Place(args.root, args.weights, args.results, args.work)
    if args.name == "status":
        for kind, name, state in status(place):
            print(f"{kind:12}{name:30}{state}")
        return
    try:
        COMMANDS[args.name].run(place, args)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
