"""The jackknife over folds, for estimates whose uncertainty is known."""

import torch

from fathom.importance.jackknife import FOLDS, centred_pseudo_values, folds_of, pseudo_values, without_each_fold


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_every_tenth_sample_is_in_the_same_fold_whatever_the_batches() -> None:
    folds = torch.cat([folds_of(0, 7), folds_of(7, 18)])
    assert folds.tolist() == [sample % FOLDS for sample in range(25)]


def test_each_fold_is_left_out_once() -> None:
    kept = without_each_fold(25)
    assert kept.shape == (10, 25)
    assert (~kept).sum(0).tolist() == [1] * 25
    assert (~kept)[3].nonzero().flatten().tolist() == [3, 13, 23]
    assert torch.equal(without_each_fold(3), ~torch.eye(3, dtype=torch.bool))


def test_pseudo_values_of_a_mean_are_the_means_of_the_folds() -> None:
    folds = torch.randn(10, 7, 3, generator=generator(), dtype=torch.float64)
    without = (folds.sum((0, 1)) - folds.sum(1)) / 63
    torch.testing.assert_close(pseudo_values(folds.mean((0, 1)), without), folds.mean(1))


def test_centred_pseudo_values_have_the_jackknife_s_spread_about_the_whole_estimate() -> None:
    values = torch.randn(20, 3, generator=generator(), dtype=torch.float64)
    without = torch.stack([(values.sum(0) - value) / 19 for value in values])
    torch.testing.assert_close(centred_pseudo_values(values.mean(0), without), values)
    moved = centred_pseudo_values(values.mean(0) + 5, without)
    torch.testing.assert_close(moved, values + 5)
