"""Narrower layers in place of fewer: Torch-Pruning (Fang et al. 2023, arXiv 2301.12900), to compare with."""

import copy
import importlib

from torch import nn

from fathom.benchmarks.experiments.own_models.sources import packages
from fathom.importance.inputs import Inputs
from fathom.importance.models.stacks import parameters_of

#: Steps of halving, and the most that may go of one layer.
STEPS, MOST = 10, 0.9


def narrowed(model: nn.Module, inputs: Inputs, answers: str, most: int) -> nn.Module:
    """A copy whose channels of least magnitude are gone, over all layers together, with at most so many parameters.

    ``answers``: the module whose outputs all stay.
    """
    packages()
    library = importlib.import_module("torch_pruning")
    low, high, found = 0.0, MOST, model
    for _ in range(STEPS):
        share, made = (low + high) / 2, copy.deepcopy(model)
        example = inputs.kwargs or inputs.args
        library.pruner.MagnitudePruner(
            made,
            example,
            importance=library.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=share,
            max_pruning_ratio=MOST,
            ignored_layers=[made.get_submodule(answers)],
        ).step()
        fits = parameters_of([made]) <= most
        low, high, found = (low, share, made) if fits else (share, high, found)
    return found.eval()
