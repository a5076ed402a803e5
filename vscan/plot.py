"""`python -m vscan.plot`: see `vscan.tools.plot`."""

from .eval.guard import run_command
from .tools.plot import main

if __name__ == "__main__":
    run_command(main)
