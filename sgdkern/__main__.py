"""``python -m sgdkern`` is the command ``sgdkern``."""

from sgdkern.cli import main

main()
