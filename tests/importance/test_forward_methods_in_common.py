"""What the methods that run the model forward have in common: gates they must see, padding they must not."""

import pytest
import torch
from toys import (
    DECISIVE,
    IRRELEVANT,
    WEAK,
    Careful,
    Reversed,
    check_rows,
    elastic,
    generator,
    histories,
    learned,
    part_of,
)

from fathom.importance.interface import ImportanceMethod
from fathom.importance.methods.ablation import Ablation
from fathom.importance.methods.activation import Activation
from fathom.importance.methods.activation_patching import ActivationPatching
from fathom.importance.methods.attention import Attention
from fathom.importance.methods.block_influence import BlockInfluence
from fathom.importance.methods.cka import CKA
from fathom.importance.methods.fisher import Fisher
from fathom.importance.methods.gradient import Gradient
from fathom.importance.methods.gradient_flow import GradientFlow
from fathom.importance.methods.spectral import Spectral
from fathom.importance.methods.uncertainty import Uncertainty
from fathom.importance.methods.zero_shot import ZeroShot
from fathom.importance.toy import GatedToy, ToyBatch, toy_batches

SEE_GATES = [Activation(), CKA(), Spectral(), ActivationPatching(), Uncertainty()]
ALL = [*SEE_GATES, Attention(), GradientFlow(), ZeroShot()]
FOLDED = (CKA, Spectral)

every_method = pytest.mark.parametrize("method", ALL, ids=lambda method: type(method).__name__)
#: These have tests of their own besides.
BASIC = [Fisher(), Gradient(), Ablation(), BlockInfluence()]
every_method_that_sees_gates = pytest.mark.parametrize("method", SEE_GATES, ids=lambda method: type(method).__name__)


@pytest.mark.parametrize("method", [*BASIC, *SEE_GATES], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("decisive", [0, 2, 4])
def test_irrelevant_layers_score_zero_and_the_decisive_layer_wins(method: ImportanceMethod, decisive: int) -> None:
    gates = [WEAK, IRRELEVANT, WEAK, IRRELEVANT, WEAK]
    gates[decisive] = DECISIVE
    model = GatedToy(gates)
    scores = method.scores(model, learned(model, toy_batches(4, 32)), generator()).mean(0)
    assert scores.argmax() == decisive
    assert scores[[1, 3]].abs().max() < 1e-6
    assert scores[decisive] > 3 * scores[[layer for layer in (0, 2, 4) if layer != decisive]].abs().max()


@every_method_that_sees_gates
def test_columns_follow_the_layer_index_not_the_execution_order(method: ImportanceMethod) -> None:
    model = Reversed([WEAK, IRRELEVANT, DECISIVE])
    scores = method.scores(model, learned(model, toy_batches(2, 32)), generator()).mean(0)
    assert scores.argmax() == 2
    assert abs(scores[1]) < 1e-6


@every_method
def test_rows_are_samples_or_folds_whatever_the_batches(method: ImportanceMethod) -> None:
    model, whole, rows = check_rows(method, FOLDED)
    parts = method.scores(model, [part_of(whole, slice(17)), part_of(whole, slice(17, 24))], generator())
    if not isinstance(method, ActivationPatching):  # its donors come from the same batch
        torch.testing.assert_close(parts, rows)


@every_method
def test_padding_is_not_read_even_if_it_is_nan(method: ImportanceMethod) -> None:
    model, (batch,) = Careful([1.0, 0.5, 0.2]), toy_batches(1, 8)
    assert not batch.real.all()
    spoiled = ToyBatch(batch.inputs.masked_fill(~batch.real[..., None], float("nan")), batch.labels, batch.real)
    rows = method.scores(model, [spoiled], generator())
    assert rows.isfinite().all()
    torch.testing.assert_close(rows, method.scores(model, [batch], generator()))


@every_method
def test_a_sequence_model_may_be_padded_further(method: ImportanceMethod) -> None:
    model = elastic()
    rows = method.scores(model, histories(model, 12, padding=0), generator())
    torch.testing.assert_close(method.scores(model, histories(model, 12, padding=3), generator()), rows)


@pytest.mark.parametrize("method", [*SEE_GATES, ZeroShot()], ids=lambda method: type(method).__name__)
def test_a_block_that_became_the_identity_does_not_matter(method: ImportanceMethod) -> None:
    model = elastic()
    model._model.block(2).become_identity()
    scores = method.scores(model, histories(model, 12, padding=0), generator()).mean(0)
    assert abs(scores[2]) < 1e-9
    assert scores[[0, 1, 3]].abs().min() > 1e-6
