"""NDCG@10 of every depth with and without something that a request may tell, paired over users."""

from typing import Any

import numpy as np

from fathom.training.evaluate import EvaluationReport
from fathom.training.metrics import interval, paired_difference
from fathom.training.scorer import depth_name

METRIC = "ndcg@10"


def differences(
    report: EvaluationReport, depths: tuple[int, ...], without: str, names: tuple[str, str]
) -> list[dict[str, Any]]:
    """A row for each depth, and for the mean over depths, as "all".

    ``without``: what ends the names of the report's systems that were told nothing. ``names``: of the figures with and
    without.
    """
    systems = [depth_name(depth) for depth in depths]
    told, plain = (
        {system: report.per_user[f"{system}{end}"][METRIC] for system in systems} for end in ("", f" {without}")
    )
    pairs = {system: (told[system], plain[system]) for system in systems}
    pairs["all"] = (np.mean([*told.values()], axis=0), np.mean([*plain.values()], axis=0))
    return [
        {
            "system": system,
            names[0]: interval(one).as_dict(),
            names[1]: interval(other).as_dict(),
            "added": paired_difference(one, other).as_dict(),
        }
        for system, (one, other) in pairs.items()
    ]
