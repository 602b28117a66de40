"""``python -m sgdkern.cli`` is ``sgdkern``."""

from sgdkern.cli import main

main()
