"""`python -m ovseg_batch`."""

from ovseg_batch.cli import main

main(prog_name="ovseg-batch")
