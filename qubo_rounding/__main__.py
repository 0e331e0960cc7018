"""`python -m qubo_rounding` is the command `qubo-rounding`."""

from qubo_rounding.cli import main

main()
