"""Speed, by a clock that the test sets."""

from gpt_jax.training.step_timer import StepTimer


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_compiling_and_evaluation_are_not_training():
    clock = Clock()
    timer = StepTimer(tokens_per_step=8, clock=clock)
    timer.start(20)
    assert timer.seconds_per_step(20) is None
    clock.now = 107.0
    timer.exclude(5.0)  # a program was compiled
    clock.now = 110.0  # 5 seconds of training
    assert timer.seconds() == 5.0
    assert timer.tokens_per_second(30) == 10 * 8 / 5
    clock.now = 116.0
    timer.restart(30)  # 6 seconds of evaluation
    clock.now = 118.0
    assert timer.seconds() == 2.0
    assert timer.tokens_per_second(34) == 4 * 8 / 2
    assert timer.seconds_per_step(34) == (118 - 100 - 5) / 14  # with the evaluation


def test_an_evaluation_before_the_first_step_counts_nowhere():
    clock = Clock()
    timer = StepTimer(tokens_per_step=8, clock=clock)
    clock.now = 150.0
    timer.restart(0)
    clock.now = 154.0
    assert timer.seconds_per_step(2) == 2.0
