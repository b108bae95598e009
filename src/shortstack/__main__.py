"""`python -m shortstack`."""

from shortstack.cli import main

main()
