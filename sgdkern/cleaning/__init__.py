"""Wrong labels: scores in [0, 1] (lower is more suspicious), thresholds, and an estimator that does it all."""

from sgdkern.cleaning.find import find_label_issues
from sgdkern.cleaning.table import LabelIssues, NoiseRate

__all__ = ["LabelIssues", "NoiseRate", "find_label_issues"]
