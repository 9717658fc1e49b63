"""What an autoencoder does in canonical form, by its formula."""

from __future__ import annotations

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.sae.autoencoder import SAE


SIZE, WIDTH = 24, 6


def sae(k: int | None = None, threshold: float = 0.3) -> SAE:
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(SIZE, WIDTH, generator=draw))
    bias, kappa = 0.1 * torch.randn(SIZE, generator=draw), 0.5 + torch.rand(SIZE, generator=draw)
    return SAE(0, rows.T.clone(), bias, rows, torch.ones(WIDTH), torch.full((SIZE,), threshold), kappa, k)


if RUNNING:
    HIDDEN = torch.randn(5, 7, WIDTH, generator=torch.Generator().manual_seed(1))


def test_a_feature_is_what_stands_above_its_threshold() -> None:
    one, found = sae(), sae().encode(HIDDEN)
    pre = HIDDEN @ one.w_enc + one.b_enc
    assert torch.equal(found, pre * (pre > 0.3))
    assert 0 < (found > 0).float().mean() < 1
    torch.testing.assert_close(one.decode(found), found @ one.w_dec + 1)


def test_rows_are_the_features_themselves() -> None:
    ids = torch.tensor([3, 17, 4])
    torch.testing.assert_close(sae().rows(ids).encode(HIDDEN), sae().encode(HIDDEN)[..., ids])


def test_top_k_keeps_the_largest_in_the_units_of_the_files_and_has_no_rows() -> None:
    one, few = sae(threshold=0.0), sae(k=3, threshold=0.0)
    found, own = few.encode(HIDDEN), one.encode(HIDDEN) / one.kappa
    assert ((found > 0).sum(-1) <= 3).all()
    assert torch.equal(found > 0, (own >= own.topk(3).values[..., -1:]) & (own > 0))
    with pytest.raises(ValueError, match="TopK"):
        few.rows(torch.tensor([1]))
