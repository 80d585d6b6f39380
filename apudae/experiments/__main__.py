"""The recorded studies from a shell: ``python -m apudae.experiments NAME``.

Each goes on where it was stopped. What is missing, and what made what is there, tells ``status``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..core.arguments import option, parsed, told
from ..core.processes import processes
from .colours import CLASSIFIERS, SETS
from .commands import COMMANDS, PROGRAM, UNREADABLE, begin, status
from .compare import Study
from .place import Place

# Those that not every command reads.
OPTIONS = (
    "profile",
    "only",
    "data",
    "authors",
    "folder",
    "classifier",
    "minutes",
    "device",
    "bundle",
    "unpack",
)


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
    told = "defenses to compare, or pieces of gpu (default: all)"
    add("--only", nargs="+", metavar="DEFENSE", help=told)
    add("--data", choices=SETS, default=SETS[0], help="of the runs on CIFAR-10 (the original)")
    told = "of cifar10: a clone of the APuDAE authors' repository, whose networks are compared"
    add("--authors", type=Path, metavar="FOLDER", help=told)
    add("--folder", type=Path, help="of photographs, one folder for each class")
    told = "of imagenet (the one that needs no download)"
    add("--classifier", choices=CLASSIFIERS, default=CLASSIFIERS[0], help=told)
    minutes = option(float, exclusive=True)
    add("--minutes", type=minutes, default=30.0, help="of gpu: it ends before (30)")
    add("--device", help="of gpu: cpu for a rehearsal (default: the GPU)")
    told = "of gpu: folder of all that it makes, in few files (default: bundle, where work waits)"
    add("--bundle", type=Path, metavar="FOLDER", help=told)
    add("--unpack", action="store_true", help="of gpu: take a bundle apart, and do nothing else")
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = parsed(parser(), argv)
    if end := told(lambda: _run(args)):
        sys.exit(end)


def _run(args: argparse.Namespace) -> None:
    with processes() as device:
        _on(device, args)


def _on(device: torch.device, args: argparse.Namespace) -> None:
    place = Place(args.root, args.weights, args.results, args.work, device)
    command, default = COMMANDS.get(args.name), parser().get_default
    for name in OPTIONS:
        if getattr(args, name) != default(name) and not (command and name in command.reads):
            raise ValueError(f"--{name}: does nothing with {args.name}")
    if command:
        for study in command.rows:  # before anything is trained
            if isinstance(study, Study):
                study.check_only(args.only)
        begin(command, place, args.profile)
        command.run(place, args)
        return
    states = status(place)
    for kind, name, state in states:
        print(f"{kind:12}{name:30}{state}")
    if wrong := dict.fromkeys(state for *_, state in states if state.startswith(UNREADABLE)):
        raise RuntimeError("; ".join(wrong))


if __name__ == "__main__":
    main()
