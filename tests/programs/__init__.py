"""Programs as users of NumPy write them."""

from tests.programs.arrays import ARRAYS
from tests.programs.learning import LEARNING, TRAINING
from tests.programs.program import Program
from tests.programs.science import SCIENCE

PROGRAMS = [*SCIENCE, *LEARNING, *ARRAYS]

__all__ = ["PROGRAMS", "TRAINING", "Program"]
