"""`python -m vscan.compare`: see `vscan.tools.compare`."""

from .eval.guard import run_command
from .tools.compare import main

if __name__ == "__main__":
    run_command(main)
