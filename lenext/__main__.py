"""`python -m lenext` is the command `lenext`."""

from lenext.cli import main

main()
