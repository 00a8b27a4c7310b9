"""How often a training writes its checkpoint: so seldom that writing costs less than 2% of the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

SHARE = 0.02  # of the time since the training started or was continued
FIRST_COST = 0.1  # seconds that the first checkpoint is expected to take; hence there is none in the first 5 s


class Pace:
    """Says when the next checkpoint is due, from the time that the last one took to write.

    A training that is killed loses the work since its last checkpoint: about 50 times what writing one takes, or an epoch.
    """

    def __init__(self) -> None:
        self.started = perf_counter()
        self.last, self.spent = FIRST_COST, 0.0  # seconds that the last checkpoint, and all of them, took to write

    def due(self) -> bool:
        """Whether one more checkpoint leaves the cost of all within SHARE of the time, if it takes as long as the last one."""
        return self.spent + self.last <= SHARE * (perf_counter() - self.started)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measure the writing of a checkpoint, which is what the block does."""
        started = perf_counter()
        yield
        self.last = perf_counter() - started
        self.spent += self.last
