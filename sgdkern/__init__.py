"""The order parameters, phases and noise spectrum of SGD, from per-sample gradients that are never stored."""

__version__ = "0.1.0"
