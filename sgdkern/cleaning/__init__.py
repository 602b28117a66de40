"""Wrong labels: scores in [0, 1] (lower is more suspicious), thresholds, and an estimator that does it all."""

from sgdkern.cleaning.confusion import NoiseMatrix, noise_matrix, noise_rates_by
from sgdkern.cleaning.estimator import LabelCleaner
from sgdkern.cleaning.find import find_label_issues
from sgdkern.cleaning.similarity import combine_ranks, gradient_alignment, neighbour_agreement
from sgdkern.cleaning.table import LabelIssues, NoiseRate

__all__ = [
    "LabelCleaner",
    "LabelIssues",
    "NoiseMatrix",
    "NoiseRate",
    "combine_ranks",
    "find_label_issues",
    "gradient_alignment",
    "neighbour_agreement",
    "noise_matrix",
    "noise_rates_by",
]
