"""Imports what is slow to import, once, in the process from which those that measure are forked; computes nothing."""

from importlib import import_module
from importlib.util import find_spec

from sgdkern.benchmark import measurement as measurement
from sgdkern.benchmark.peers import PEERS

# vmap imports the first on its first call: five seconds.
for _name in ("torch._dynamo", "torchvision.models", *PEERS.values()):
    if find_spec(_name.partition(".")[0]) is not None:
        import_module(_name)
