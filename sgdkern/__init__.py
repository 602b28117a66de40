"""The order parameters, phases and noise spectrum of SGD, from per-sample gradients that are never stored."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.gram_pass import GramMatrix, gram_matrix
from sgdkern.history import History
from sgdkern.order_parameters import (
    OrderParameters,
    activity_exact,
    activity_stratified,
    cosine_null,
    group_statistics,
    order_parameters,
)
from sgdkern.record import Record
from sgdkern.spectrum import Spectrum, noise_spectrum
from sgdkern.streaming import StreamingGradients
from sgdkern.subspace import subspace_overlap
from sgdkern.verification import Report, verify
from sgdkern.watching import watch

if TYPE_CHECKING:
    from sgdkern.alarm import Alarm
    from sgdkern.cleaning import LabelCleaner, LabelIssues, find_label_issues
    from sgdkern.phase_detector import PhaseDetector, PhaseEvent
    from sgdkern.phases import Phase, Phases, label_phases
    from sgdkern.probe import Probe

__version__ = "0.1.0"

__all__ = [
    "Alarm",
    "GradientMatrix",
    "GramMatrix",
    "History",
    "LabelCleaner",
    "LabelIssues",
    "OrderParameters",
    "Phase",
    "PhaseDetector",
    "PhaseEvent",
    "Phases",
    "Probe",
    "Record",
    "Report",
    "Spectrum",
    "StreamingGradients",
    "activity_exact",
    "activity_stratified",
    "cosine_null",
    "find_label_issues",
    "gram_matrix",
    "group_statistics",
    "label_phases",
    "noise_spectrum",
    "order_parameters",
    "per_sample_gradients",
    "subspace_overlap",
    "verify",
    "watch",
]

# Names whose rooms need scikit-learn, which takes a second to import: a room is opened when a name is first asked for.
_LATER = {
    "Alarm": "alarm",
    "LabelCleaner": "cleaning",
    "LabelIssues": "cleaning",
    "Phase": "phases",
    "PhaseDetector": "phase_detector",
    "PhaseEvent": "phase_detector",
    "Phases": "phases",
    "Probe": "probe",
    "find_label_issues": "cleaning",
    "label_phases": "phases",
}


def __getattr__(name: str) -> Any:
    """A public name from a room that is opened late."""
    if name not in _LATER:
        raise AttributeError(f"module 'sgdkern' has no attribute {name!r}")
    return getattr(import_module(f"sgdkern.{_LATER[name]}"), name)
