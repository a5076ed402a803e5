"""`python -m vscan.selfcheck`: see `vscan.tools.selfcheck`."""

from .eval.guard import run_command
from .tools.selfcheck import main

if __name__ == "__main__":
    run_command(main)
