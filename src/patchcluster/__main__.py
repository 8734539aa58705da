"""`python -m patchcluster` is the `patchcluster` command."""

from .cli import main

main()
