"""`python -m vscan.profile`: see `vscan.tools.profile`."""

from .eval.guard import run_command
from .tools.profile import main

if __name__ == "__main__":
    run_command(main)
