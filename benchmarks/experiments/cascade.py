"""A cascade, which no server follows: it goes to the network's first exit, looks at the answer there, and goes on.

What it has seen tells more than the request alone, but the look costs a search and an exit, and a choice before any
layer saves more with the same time (``agreement``; docs/log.md). Of the learners it has the ridge.
"""

import time

import numpy as np

from fathom.exporter.certification.learners import PRICES, relative_costs
from fathom.exporter.certification.outcomes import ROUNDS, Costs, Outcomes
from fathom.exporter.certification.routing_curves import Policy
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.retriever import FlatRetriever
from fathom.selector.certificate import TOP
from fathom.selector.learned import LossModel
from fathom.selector.routing import least_total, one_hot
from fathom.selector.schema import Floats

#: Scores are divided by it before their softmax, of which the entropy is taken: nats of ten items, 0 to log(10).
SHARPNESS = 0.05


def with_answer(requests: Outcomes) -> Floats:
    """What a cascade knows at the first exit, (n, features + 4).

    Beside the features: the best score; how far the second and the last of the best ten lie below it; their entropy.
    """
    column = requests.depths.index(requests.network_depths[0])
    items, scores = requests.best[:, column], requests.scores[:, column]
    with np.errstate(invalid="ignore", divide="ignore"):
        below = scores[:, :1] - scores
        shares = np.exp(-below / SHARPNESS)
        shares /= np.nansum(shares, axis=1, keepdims=True)
        entropy = -np.nansum(shares * np.log(shares), axis=1)
    own = np.column_stack([scores[:, 0], below[:, 1], np.fmax.reduce(below, axis=1), entropy])
    own[items[:, 1] < 0] = 0.0
    return np.column_stack([requests.features, own])


def walked_costs(bundle: Bundle, costs: Costs) -> Costs:
    """What it costs to go on to each depth from the first exit, where the best items have been looked up.

    As alone, and what the engine and that search take longer: medians of interleaved runs on this machine.
    """
    retriever, no_filter = FlatRetriever(bundle.vectors), ItemFilter()
    with open_engine(bundle) as engine:
        first = engine.depths[0]
        taken = np.empty((ROUNDS + 1, len(costs.lengths), len(engine.depths), 2))
        for turn in range(ROUNDS + 1):
            for row, length in enumerate(costs.lengths.tolist()):
                items = np.arange(length, dtype=np.int64)[None] % len(bundle.vectors) + 1
                for place, depth in enumerate(engine.depths):
                    start_s = time.perf_counter()
                    engine.run(items, None, depth)
                    between_s = time.perf_counter()
                    walk = engine.walk(items, None, sorted({first, depth}))
                    users = next(walk)
                    for _ in walk:
                        retriever.search(users, [TOP], [no_filter], None)
                    taken[turn, row, place] = between_s - start_s, time.perf_counter() - between_s
    run, walked = np.moveaxis(np.median(taken[1:], axis=0) * 1e3, -1, 0)
    ms = costs.ms.copy()
    ms[:, -len(engine.depths) + 1 :] += np.maximum(walked - run, 0)[:, 1:]
    return Costs(costs.depths, costs.lengths, ms)


def cascade(known: Outcomes, judged: Outcomes, walked: Costs) -> Policy:
    """Depths that are chosen at the first exit; depth 0 is none of them."""
    exits = judged.network_depths
    known, asked, costs = known.at_depths(exits), judged.at_depths(exits), walked.at_depths(exits)
    model = LossModel.fit(with_answer(known), 1 - known.agreement[:, :-1], known.users)
    told, spent = model.predict(with_answer(asked)), relative_costs(known, costs).of(asked.features)
    chosen = [one_hot(least_total(told, spent, price), len(exits)) for price in PRICES]
    counted = len(judged.depths) - len(exits)
    return Policy("cascade", [np.pad(each, ((0, 0), (counted, 0))) for each in chosen])
