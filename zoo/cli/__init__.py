"""The command `zoo`: parsing and formatting only. Each module of this package adds one group of commands.

stdout carries the answer; progress and warnings go to stderr. Exit codes: 0 done, 1 it failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from zoo import __version__
from zoo.cli.output import add_output_options, say
from zoo.cli.plugin_commands import HELP, RUN, add_plugin_commands
from zoo.errors import RandomWeightsWarning, UsageError, ZooError
from zoo.registry.suggest import did_you_mean, nearest
from zoo.registry.terminal import message as terminal_message

# command -> the module of this package that adds it, in the order of the help. Only that of the command asked for is imported.
COMMANDS = {
    "demo": "demo",
    "classify": "classify",
    "transcribe": "transcribe",
    "generate": "generate",
    "adapt": "adapt",
    "compose": "compose",
    "quantize": "quantize",
    "embed": "retrieve",
    "search": "retrieve",
    "filter": "curate",
    "list": "catalogue",
    "show": "catalogue",
    "plugins": "manage",
    "doctor": "manage",
    "enable": "manage",
    "disable": "manage",
    "pin": "manage",
    "default": "manage",
    "install": "manage",
    "uninstall": "manage",
    "fetch": "weights",
    "cache": "weights",
    "new": "author",
    "check": "author",
    "can": "author",
    "lock": "author",
    "bench": "bench",
}

DESCRIPTION = "A multimodal model zoo made of plugins."
EPILOG = "zoo COMMAND --help explains a command. Every command has --json; --debug shows the traceback of an error."


class _Parser(argparse.ArgumentParser):
    """One line on stderr for wrong usage, as for every other error. words: what the whole command line was."""

    words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {terminal_message(self._suggested(message))} (see: {self.prog} --help)\n")

    def _suggested(self, message: str) -> str:
        """A word that is none of a few, or an option that is unknown, with what may have been meant in place of all there is."""
        choice = re.match(r"(?P<where>.*)invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)", message, re.DOTALL)
        if choice is not None:
            known = re.findall(r"[^\s',]+", choice["known"])
            near = nearest(choice["given"], known)
            return (
                f"{choice['where']}invalid choice: '{choice['given']}'; {did_you_mean(near, choice['known'])}"
                if near
                else message
            )
        option = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        known = _options(_innermost(self, self.words))
        near = nearest(option[1], known, most=1, cutoff=0.75) if option is not None else []
        return f"{message}; {did_you_mean(near, '')}" if near else message


def _innermost(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command, or of the action of one, that words name."""
    for number, word in enumerate(words):
        for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:  # noqa: SLF001 - as above
                return _innermost(action.choices[word], words[number + 1 :])
    return parser


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Its long options."""
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]  # noqa: SLF001 - as above


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line; arguments: what it is for. Those of one command need that command alone; with none, all of the core are there."""
    root = _Parser(prog="zoo", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    root.words = arguments
    root.set_defaults(json=False, debug=False, run=None)
    root.add_argument("--version", action="version", version=f"zoo {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    asked = next((argument for argument in arguments if not argument.startswith("-") or argument in HELP), "")
    modules = [COMMANDS[asked]] if asked in COMMANDS else dict.fromkeys(COMMANDS.values())
    for module in modules:
        import_module(f"zoo.cli.{module}").add_commands(commands)
    for command in commands.choices.values():
        add_output_options(command)
    add_plugin_commands(commands, arguments)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        parsed = parser(arguments).parse_args(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RandomWeightsWarning)  # commands say it in a line of their own
            code: int = getattr(parsed, RUN, parsed.run)(parsed)
        if sys.stdout is not None:
            sys.stdout.flush()
    except ZooError as error:
        if debug:
            raise
        say(f"zoo: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt as stop:
        say("zoo: interrupted" + (f"; {stop}" if str(stop) else ""), file=sys.stderr)
        return 130
    except (MemoryError, RecursionError) as error:
        if debug:
            raise
        what = "there is not enough memory for it" if isinstance(error, MemoryError) else "it is nested too deeply"
        say(f"zoo: {what} (--debug shows where)", file=sys.stderr)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():  # the reader of our output (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if debug:
            raise
        where = f": {error.filename}" if error.filename else ""
        say(f"zoo: {error.strerror or error}{where} (--debug shows where)", file=sys.stderr)
        return 1
    except Exception as error:
        from zoo.registry.blame import at_fault

        culprit = None if debug else at_fault(error)
        if culprit is None:
            raise
        say(f"zoo: {culprit.error}; {culprit.cure}", file=sys.stderr)
        return 1
    return code


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe whose reader has gone."""
    import select

    if not hasattr(select, "poll"):
        return True
    ask = select.poll()
    ask.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in ask.poll(0))
