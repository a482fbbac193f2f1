"""A tracker that tells what it was told, in the place of wandb or trackio."""

import importlib.machinery
import sys
import types


class FakeTracker(types.ModuleType):
    """Stands in for a tracker; `fails` names what raises.

    Attributes:
      begun: how each run was begun.
      rows: (step, numbers) of all runs.
      of_runs: the steps that each run was told of, by its name.
      finished: how many runs have ended.
    """

    def __init__(self, name, fails=()):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.fails, self.begun, self.rows, self.finished = set(fails), [], [], 0
        self.of_runs = {}

    def init(self, **how):
        self.may_fail("init")
        print("begun")  # as trackio does
        self.begun.append(how)
        return FakeRun(self, how["name"])

    def Table(self, columns, data):
        return columns, data

    def Image(self, path):
        return f"image {path}"

    def may_fail(self, what):
        if what in self.fails:
            raise OSError(f"no network\nfor {what}")


class FakeRun:
    def __init__(self, module, name):
        self.module, self.steps = module, module.of_runs.setdefault(name, [])

    def log(self, values, step):
        self.module.may_fail("log")
        self.module.rows.append((step, values))
        self.steps.append(step)

    def finish(self):
        self.module.may_fail("finish")
        self.module.finished += 1


def use(monkeypatch, name, fails=()):
    """Returns a stand-in that is imported by this name."""
    module = FakeTracker(name, fails)
    monkeypatch.setitem(sys.modules, name, module)
    return module
