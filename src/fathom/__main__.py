"""`python -m fathom` is the same as `fathom`."""

from fathom.cli import main

main()
