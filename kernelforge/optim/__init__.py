"""Optimisers as pure functions: ``init`` makes a state, ``update`` makes new parameters and a new state.

```python
optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(optim.cosine(1e-3, steps)))
state = optimizer.init(params)

@kf.jit
def step(params, state, x):
    value, grads = kf.value_and_grad(loss)(params, x)
    params, state = optimizer.update(state, grads, params)
    return params, state, value
```

A learning rate is a number or a schedule, a function of the number of updates before; that number is a part of the
state, so nothing is compiled again. f16 and bf16 are updated in f32, in which the state is. All parameters of one dtype
are updated in one kernel, those of f16 and bf16 with those of f32, but where an optimiser needs norms or products of a
whole tensor first.
"""

from __future__ import annotations

from kernelforge.optim.adaptive import adabelief, adadelta, adafactor, adamax, asgd, nadam, oadam, radam, rprop
from kernelforge.optim.optimizer import Optimizer, accumulate, chain, clip_by_global_norm, clip_by_value, global_norm
from kernelforge.optim.quasi_newton import lbfgs
from kernelforge.optim.rules import adagrad, adam, adamw, lamb, lion, muon, rmsprop, sgd
from kernelforge.optim.schedules import (
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    linear,
    one_cycle,
    piecewise,
    plateau,
    polynomial,
    sequential,
    step,
    warmup,
)

__all__ = [
    "Optimizer",
    "accumulate",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "global_norm",
    "lamb",
    "lbfgs",
    "linear",
    "lion",
    "muon",
    "nadam",
    "oadam",
    "one_cycle",
    "piecewise",
    "plateau",
    "polynomial",
    "radam",
    "rmsprop",
    "rprop",
    "sequential",
    "sgd",
    "step",
    "warmup",
]


def __dir__() -> list[str]:
    return __all__
