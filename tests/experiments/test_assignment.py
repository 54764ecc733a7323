"""Units get arms by hashes: the same one always, as often as the shares say, independently between layers."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency

from fathom.experiments.assignment import Assigner
from fathom.experiments.config import Arm, Experiment, Experiments, Metric, Shadow

CLICKS = Metric(outcome="click")


def experiment(layer: str | None = None, reserved: dict[str, float] | None = None, **shares: float) -> Experiment:
    arms = {name: Arm(share=share, up_to=(reserved or {}).get(name)) for name, share in shares.items()}
    return Experiment(layer=layer, arms=arms, primary=CLICKS)


def assigner(**experiments: Experiment) -> Assigner:
    return Assigner(Experiments(salt="a-long-secret", experiments=experiments))


def arms_of(assign: Assigner, unit: str) -> dict[str, str]:
    return {each.experiment: each.arm for each in assign.assign({"user": unit})}


def test_the_shares_are_met_and_every_assignment_has_its_propensity() -> None:
    assign = assigner(one=experiment(control=0.2, b=0.3, c=0.1))
    counts: Counter[str] = Counter()
    for number in range(20_000):
        for each in assign.assign({"user": f"u{number}"}):
            counts[each.arm] += 1
            assert each.propensity == {"control": 0.2, "b": 0.3, "c": 0.1}[each.arm]
    counts["none"] = 20_000 - counts.total()
    wanted = {"control": 4_000, "b": 6_000, "c": 2_000, "none": 8_000}
    statistic = sum((counts[name] - wanted[name]) ** 2 / wanted[name] for name in wanted)
    assert statistic < chi2.ppf(0.9999, df=3)


def test_layers_are_independent_and_experiments_of_one_layer_exclude_each_other() -> None:
    assign = assigner(
        one=experiment(control=0.5, b=0.5),
        two=experiment(control=0.5, b=0.5),
        three=experiment("shared", control=0.3, b=0.3),
        four=experiment("shared", control=0.2, b=0.2),
    )
    table = [[0, 0], [0, 0]]
    for number in range(20_000):
        found = arms_of(assign, f"u{number}")
        table[found["one"] == "b"][found["two"] == "b"] += 1
        assert ("three" in found) + ("four" in found) == 1
    assert chi2_contingency(table).pvalue > 1e-4


SHARES = st.lists(st.floats(0, 0.2), min_size=3, max_size=3)


@given(small=SHARES, more=SHARES, unit=st.text(min_size=1))
@settings(deadline=None)
def test_a_share_that_grows_takes_units_only_from_those_without_an_arm(
    small: list[float], more: list[float], unit: str
) -> None:
    names = ("control", "b", "c")
    reserved = dict.fromkeys(names, 0.33)
    before = experiment(reserved=reserved, **dict(zip(names, small, strict=True)))
    after = experiment(reserved=reserved, **{n: min(a + b, 0.33) for n, a, b in zip(names, small, more, strict=True)})
    was, now = (arms_of(assigner(one=each), unit) for each in (before, after))
    assert was == arms_of(assigner(one=before), unit)
    assert not was or was == now


@given(unit=st.text(min_size=1), other=st.text(min_size=1))
def test_logs_name_no_user_and_confuse_no_two(unit: str, other: str) -> None:
    assign = assigner(one=experiment(control=0.5, b=0.5))
    (found,) = assign.assign({"user": unit})
    assert len(found.unit_hash) == 32
    assert (assign.unit_hash(other) == found.unit_hash) == (unit == other)


def test_another_salt_or_experiment_mixes_the_units_anew() -> None:
    given = experiment(control=0.5, b=0.5)
    mixed = [
        assigner(one=given),
        Assigner(Experiments(salt="another-secret", experiments={"one": given})),
        assigner(one=given.model_copy(update={"salt": "again"})),
        assigner(two=given),
    ]
    drawn = [[next(iter(arms_of(each, f"u{n}").values())) for n in range(2_000)] for each in mixed]
    for one in range(len(drawn)):
        for other in range(one):
            same = sum(a == b for a, b in zip(drawn[one], drawn[other], strict=True))
            assert 850 < same < 1_150


def test_a_request_without_the_unit_gets_no_arm_and_shadows_get_their_share() -> None:
    shadowed = Experiment(arms={"control": Arm(share=1.0)}, shadows={"next": Shadow(share=0.25)}, unit="request")
    assign = assigner(one=experiment(control=0.5, b=0.5), two=shadowed)
    assert assign.assign({"session": "s"}) == ()
    assert [each.experiment for each in assign.assign({"request": "r"})] == ["two"]
    copies = sum(bool(assign.shadows({"request": f"r{number}"})) for number in range(4_000))
    assert 880 < copies < 1_120
    assert assign.shadows({"user": "u"}) == ()
