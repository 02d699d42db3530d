"""What a graph is to answer, worked out in this process: the builder binds stand-ins, and those are called directly."""

from typing import Any

from workers import Stage


class Call:
    """A bound method: runs once for each execution, or fails as its first failing argument does."""

    def __init__(self, stage, method, args, kwargs):
        self.stage, self.method, self.args, self.kwargs = stage, method, args, kwargs

    def run(self, execution):
        if self not in execution.done:
            args = [arg.run(execution) if isinstance(arg, (Call, Part, Input)) else arg for arg in self.args]
            failures = [failure for arg in args if isinstance(arg, Failed) for failure in arg.failures]
            if failures:
                execution.done[self] = Failed(failures)
            else:
                try:
                    execution.done[self] = getattr(self.stage, self.method)(*args, **self.kwargs)
                except ValueError as error:
                    execution.done[self] = Failed([error.args])
        return execution.done[self]


class Part:
    """One of several values of a call."""

    def __init__(self, call, index):
        self.call, self.index = call, index

    def run(self, execution):
        value = self.call.run(execution)
        return value if isinstance(value, Failed) else value[self.index]


class Input:
    """The input of the graph, or a part of it."""

    def __init__(self, key=None):
        self.key = key

    def __getitem__(self, key):
        return Input(key)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Input(name)

    def run(self, execution):
        if isinstance(self.key, str):
            return execution.kwargs[self.key]
        return execution.args[self.key or 0]


class Failed:
    """In the place of a value: what was raised, as (where, number), in order."""

    def __init__(self, failures):
        self.failures = list(dict.fromkeys(failures))


class Method:
    def __init__(self, stage, name, num_returns=1):
        self.stage, self.name, self.num_returns = stage, name, num_returns

    def options(self, num_returns):
        return Method(self.stage, self.name, num_returns)

    def bind(self, *args, **kwargs):
        call = Call(self.stage, self.name, args, kwargs)
        return call if self.num_returns == 1 else tuple(Part(call, index) for index in range(self.num_returns))


class Actor:
    def __init__(self, label):
        self.stage = Stage(label)

    def __getattr__(self, name):
        return Method(self.stage, name)


class Execution:
    def __init__(self, args, kwargs):
        self.args, self.kwargs = args, kwargs
        self.done: dict[Any, Any] = {}


class Reference:
    """A graph that answers as the real one is to."""

    def __init__(self, build, num_actors):
        built = build(Input(), [Actor(label) for label in range(num_actors)])
        self.outputs = built if isinstance(built, list) else [built]

    def answer(self, *args, **kwargs):
        """Return what each output is to be: a value, or Failed."""
        execution = Execution(args, kwargs)
        return [output.run(execution) for output in self.outputs]
