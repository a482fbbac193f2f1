"""The scripts in benchmarks/ that use the package still fit it; their figures are files."""

import math
from pathlib import Path

from benchmarks import reproduce


def test_the_loss_over_initialisations_is_near_that_of_guessing(tiny_config):
    found = reproduce.initial_losses(tiny_config, n=3)
    assert found["initialisations"] == 3
    assert found["lowest"] < found["mean"] < found["highest"]
    n = len(set(Path(tiny_config.data.corpus).read_text("utf-8")))
    assert abs(found["mean"] - math.log(n)) < 0.1  # logits of weights of 0.02 are near 0
