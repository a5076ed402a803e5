"""The last guard around every command: whatever goes wrong ends in one line, and in an exit code that scripts can read.

2    bad input, or an error of ours; VSCAN_DEBUG=1 shows where
130  Ctrl-C
141  whoever read the output has gone, as `head` does
"""

import argparse
import json
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

WIDTH = 600  # of a line, in characters: an argument may have thousands


class Parser(argparse.ArgumentParser):
    """argparse, without abbreviated flags, and without the usage before an error."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """End the command with one line."""
        self.exit(2, f"error: {shorten(message)} (see --help)\n")


def run_command(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a command on this process's arguments, and end the process: whatever it raises becomes one line."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        _end(str(stop) or "stopped", 130)
    except BrokenPipeError as error:
        if _is_read():
            _end(f"error: {describe(error)}", 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would say so when it ends
        sys.exit(141)
    except Exception as error:
        _end(f"error: {describe(error)}", 2)
    sys.exit(0)


def _end(line: str, code: int) -> NoReturn:
    if os.environ.get("VSCAN_DEBUG") == "1":
        traceback.print_exc()
    print(line, file=sys.stderr)
    sys.exit(code)


def _is_read() -> bool:
    """Whether somebody still reads what is printed, or it goes elsewhere than into a pipe."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file at all
        return True
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def describe(error: Exception) -> str:
    """One line about an error: its message, and where that was not written for a user its type as well."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        files = [shorten(str(name), 200) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(files)}: {error.strerror}"
    text = shorten(str(error))
    if text and _is_of_input(error):
        return text
    return f"{type(error).__name__}{text and ': '}{text} (VSCAN_DEBUG=1 shows where)"


def _is_of_input(error: Exception) -> bool:
    """Whether an error was raised about bad input, in words that say what was expected."""
    compat = sys.modules.get(f"{__package__.rpartition('.')[0]}.compat")  # it imports torch: who raised, has it
    if compat is not None and isinstance(error, compat.LibraryChanged):
        return True
    if isinstance(error, OSError):
        return error.errno is None
    return isinstance(error, ValueError) and not isinstance(error, UnicodeError | json.JSONDecodeError)


def shorten(text: str, width: int = WIDTH) -> str:
    """A text in one line of at most about `width` characters: its beginning and its end."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width * 2 // 3]} [...] {line[-width // 4 :]}"
