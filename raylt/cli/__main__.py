"""`python -m raylt.cli`: the command line without an installed script."""

from raylt.cli import main

main()
