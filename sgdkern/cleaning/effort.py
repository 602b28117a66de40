"""How many networks, rounds and epochs the modes of `LabelCleaner` spend."""

from __future__ import annotations

from dataclasses import dataclass

LATER_EPOCHS = 12  # most epochs of the rounds after the first: fewer labels are wrong, and they begin knowing when


@dataclass(frozen=True)
class Effort:
    """What a mode spends.

    Attributes:
        members: networks a round.
        rounds: rounds of training.
        max_epochs: most epochs of the first round.
        min_steps: least steps an epoch; small data take several passes, or there would be too few to learn anything.
    """

    members: int
    rounds: int
    max_epochs: int
    min_steps: int

    def epochs(self, number: int) -> int:
        """Return how many epochs a round, counted from 1, trains at most."""
        return self.max_epochs if number == 1 else min(self.max_epochs, LATER_EPOCHS)


# Ten small networks in one stack cost little more than one. Models of one's own cost their full time each: several for
# few epochs rank better than one for many, and these cost less than a half and a quarter of five folds of ten epochs.
STACKED = {"default": Effort(10, 3, 30, min_steps=20), "fast": Effort(5, 2, 30, min_steps=20)}
SEPARATE = {"default": Effort(3, 1, 7, min_steps=30), "fast": Effort(2, 1, 5, min_steps=30)}
