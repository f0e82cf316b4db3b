"""Command line program `seedmask`: it finds the sub-commands that are installed and runs one of them.

Exit status: 0 done, 1 the work failed, 2 something the caller can mend (bad arguments, files, settings),
3 a package is missing, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from seedmask import __version__
from seedmask.errors import MissingPackageError, UserError
from seedmask.io.commands import Command

GROUP = "seedmask.commands"
_FORMAT = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)


def commands(wanted: str | None = None) -> dict[str, Command]:
    """Return the sub-commands by name that installed distributions announce, even those whose packages are missing.

    If `wanted` is one of them, return that one alone: a device that runs the client need not load the simulator.
    """
    entries = importlib.metadata.entry_points(group=GROUP)
    found = [entry.load() for entry in (entries.select(name=wanted) if wanted else ()) or entries]
    return {command.name: command for command in sorted(found, key=lambda command: command.name)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the exit status. `argv`: its arguments, by default those of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = commands(arguments[0] if arguments else None)
    usable = {name: command for name, command in known.items() if not command.missing}
    absent = {name: command for name, command in known.items() if command.missing}
    if arguments and arguments[0] in absent:
        command = absent[arguments[0]]
        print(
            f"seedmask {command.name} needs {', '.join(command.missing)}, which this machine does not have:\n"
            f"    pip install 'seedmask[{command.extra}]'      (in a clone: pip install '.[{command.extra}]')",
            file=sys.stderr,
        )
        return 3
    if arguments and arguments[0] not in known and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        print(f"seedmask: no command {arguments[0]!r}; {hint}", file=sys.stderr)
        return 2
    options = _parser(usable, absent).parse_args(arguments)
    try:
        return usable[options.command].run(options)
    except UserError as error:
        print(f"seedmask {options.command}: {error}", file=sys.stderr)
        return 3 if isinstance(error, MissingPackageError) else 2
    except KeyboardInterrupt:
        print(f"seedmask {options.command}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The program that reads our output (head, less) has ended; there is nobody to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        # A full or read-only disk, or a folder that was removed: a traceback would not explain it better.
        where = f" {error.filename}" if error.filename else ""
        print(f"seedmask {options.command}: {error.strerror or error}{where}", file=sys.stderr)
        return 1


def _parser(usable: dict[str, Command], absent: dict[str, Command]) -> argparse.ArgumentParser:
    width = max((len(name) for name in absent), default=0) + 2
    others = [
        f"  {c.name:<{width}}pip install 'seedmask[{c.extra}]'   (in a clone: '.[{c.extra}]')" for c in absent.values()
    ]
    parser = argparse.ArgumentParser(
        prog="seedmask",
        description="Train one network across small machines over MQTT, sending masks and never a weight.",
        epilog="\n".join(["not installed on this machine:", *others]) if others else None,
        formatter_class=_FORMAT,
    )
    parser.add_argument("--version", action="version", version=f"seedmask {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command", title="commands")
    for command in usable.values():
        sub = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            formatter_class=_FORMAT,
        )
        command.add_arguments(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
