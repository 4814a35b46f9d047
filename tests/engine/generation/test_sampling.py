"""Tokens are drawn from softmax, from the right tokens, and rounding's part in it is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from steerlens.engine.generation.sampling import ROUNDING, Noise, Sampling, next_tokens, row_seed

DRAWS = 20_000
GREEDY = Sampling(temperature=0.0)


def some_logits(n_rows: int, d_vocab: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n_rows, d_vocab, generator=torch.Generator().manual_seed(seed))


def draw(logits_V: torch.Tensor, sampling: Sampling, n: int = DRAWS, seed: int = 0) -> torch.Tensor:
    """`n` tokens, of as many rows with seeds of their own."""
    noise = Noise([row_seed(seed, row) for row in range(n)])
    return next_tokens(logits_V.expand(n, -1), sampling, noise).token_B


def naive_probabilities(logits_V: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """(V,): softmax of the temperature, then the k most probable, then the fewest that reach p."""
    p_V = np.exp((logits_V.double() / sampling.temperature).numpy())
    p_V /= p_V.sum()
    order = np.argsort(-p_V)
    if sampling.top_k is not None:
        p_V[order[sampling.top_k :]] = 0
        p_V /= p_V.sum()
    if sampling.top_p is not None:
        n = 1
        while n < len(order) and p_V[order[:n]].sum() < sampling.top_p:
            n += 1
        p_V[order[n:]] = 0
        p_V /= p_V.sum()
    return p_V


def assert_drawn_from(tokens: torch.Tensor, p_V: np.ndarray) -> None:
    counts = np.bincount(tokens.numpy(), minlength=len(p_V))
    assert len(counts) == len(p_V)
    assert counts[p_V == 0].sum() == 0
    often = p_V * len(tokens) >= 5  # the rest together, as the test wants
    observed = [*counts[often], counts[~often].sum()]
    expected = [*p_V[often] * len(tokens), p_V[~often].sum() * len(tokens)]
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    if len(observed) > 1:
        assert chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize(
    ("d_vocab", "temperature"),
    [(1, 0.7), (2, 0.7), (3, 1.5), (4, 0.7), (5, 1.5), (7, 0.7), (10, 1.0), (16, 0.7), (50, 1.5)],
)
def test_tokens_are_drawn_from_softmax(d_vocab: int, temperature: float) -> None:
    logits_V = some_logits(1, d_vocab, seed=d_vocab)[0]
    sampling = Sampling(temperature)
    assert_drawn_from(draw(logits_V, sampling), naive_probabilities(logits_V, sampling))


def test_equal_logits_are_equally_probable() -> None:
    for d_vocab in (2, 3, 11):
        assert_drawn_from(draw(torch.zeros(d_vocab), Sampling()), np.full(d_vocab, 1 / d_vocab))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, top_k=1),
        Sampling(1.0, top_k=4),
        Sampling(0.8, top_k=100),
        Sampling(1.0, top_p=0.01),
        Sampling(1.3, top_p=0.6),
        Sampling(1.0, top_p=1.0),
        Sampling(1.5, top_k=5, top_p=0.8),
        Sampling(2.0, top_k=9, top_p=0.5),
    ],
)
@pytest.mark.parametrize("d_vocab", [2, 13, 30])
def test_top_k_and_top_p_allow_the_right_tokens(sampling: Sampling, d_vocab: int) -> None:
    logits_V = some_logits(1, d_vocab, seed=3)[0]
    p_V = naive_probabilities(logits_V, sampling)
    assert_drawn_from(draw(logits_V, sampling, 4000), p_V)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits_V = torch.tensor([0.1, 0.5, 0.4]).log()
    for top_p, allowed in (
        (0.3, {1}),
        (0.49, {1}),
        (0.6, {1, 2}),
        (0.89, {1, 2}),
        (0.95, {0, 1, 2}),
    ):
        assert set(draw(logits_V, Sampling(1.0, top_p=top_p), 2000).tolist()) == allowed


def test_greedy_takes_the_most_probable_token_and_the_first_of_equal_ones() -> None:
    for d_vocab in (1, 2, 3, 17, 211):
        logits_BV = some_logits(40, d_vocab)
        found = next_tokens(logits_BV, GREEDY, Noise([0] * 40))
        assert found.token_B.tolist() == logits_BV.argmax(-1).tolist()
    equal = torch.tensor([[0.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert next_tokens(equal, GREEDY, Noise([0, 0])).token_B.tolist() == [1, 0]


def test_greedy_uses_no_noise() -> None:
    noise = Noise([3])
    next_tokens(some_logits(1, 9), GREEDY, noise)
    assert torch.equal(noise.gumbel(5), Noise([3]).gumbel(5))


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    logits_BV, seeds = some_logits(50, 23), [row_seed("a", row) for row in range(50)]
    for sampling in (Sampling(), Sampling(top_k=5), Sampling(top_p=0.8)):
        together = next_tokens(logits_BV, sampling, Noise(seeds)).token_B.tolist()
        alone = [
            next_tokens(logits_BV[row : row + 1], sampling, Noise(seeds[row : row + 1])).token_B
            for row in range(50)
        ]
        assert torch.cat(alone).tolist() == together


def test_large_batches_are_drawn_in_parts_that_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits_BV, seeds = some_logits(20, 30), list(range(20))
    whole = next_tokens(logits_BV, Sampling(top_p=0.9), Noise(seeds))
    monkeypatch.setattr("steerlens.engine.generation.sampling.BYTES_AT_ONCE", 3 * 4 * 30)
    parts = next_tokens(logits_BV, Sampling(top_p=0.9), Noise(seeds))
    assert torch.equal(whole.token_B, parts.token_B)
    assert torch.equal(whole.near_tie_B, parts.near_tie_B)


def test_rows_that_stay_go_on_with_their_own_noise() -> None:
    noise, one = Noise([4, 5, 6]), Noise([6])
    noise.gumbel(3)
    one.gumbel(3)
    noise.select(torch.tensor([2]))
    assert torch.equal(noise.gumbel(4), one.gumbel(4))


def test_noise_is_gumbels() -> None:
    numbers = Noise([1]).gumbel(DRAWS).numpy()[0]
    assert abs(numbers.mean() - np.euler_gamma) < 0.03
    assert abs(numbers.var() - math.pi**2 / 6) < 0.06
    assert np.isfinite(numbers).all()


def test_seeds_differ_by_every_part_and_fit_in_63_bits() -> None:
    parts = [(0, 2, 5, "", 0.5, "a", 0), (0, 2, 5, "", 0.5, "a", 1), (0, 25, "", 0.5, "a", 0)]
    seeds = {row_seed(*one) for one in (*parts, (0, 2, 5, "", -0.5, "a", 0), (0,), ())}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed(*parts[0]) == row_seed(*parts[0])


def test_greedy_flags_near_ties_and_nothing_else() -> None:
    just, clear = 0.5 * ROUNDING, 3 * ROUNDING
    logits_BV = torch.tensor(
        [[1.0, 0.0, 1.0], [1.0, 1.0 - just, 0], [1.0, 1.0 - clear, 0], [1, 0, 0]]
    )
    assert next_tokens(logits_BV, GREEDY, Noise([0] * 4)).near_tie_B.tolist() == [
        True, True, False, False,
    ]  # fmt: skip
    # Rounding grows with the size of logits.
    assert next_tokens(100 * logits_BV, GREEDY, Noise([0] * 4)).near_tie_B.tolist() == [
        True, True, False, False,
    ]  # fmt: skip
    assert next_tokens(torch.tensor([[3.0]]), GREEDY, Noise([0])).near_tie_B.tolist() == [False]


def near_ties(logits_BV: torch.Tensor, sampling: Sampling) -> float:
    found = next_tokens(logits_BV, sampling, Noise(range(len(logits_BV))))
    return float(found.near_tie_B.double().mean())


def test_a_filters_edge_between_equal_logits_is_a_near_tie() -> None:
    # Which of the equal ones is the second most probable hangs on rounding.
    edge = torch.tensor([1.0, 0.9, 0.9 - 0.3 * ROUNDING, -9.0]).expand(2000, -1)
    clear = torch.tensor([1.0, 0.9, -9.0, -9.5]).expand(2000, -1)
    for sampling in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.5)):
        assert near_ties(edge, sampling) > 0.2
        assert near_ties(clear, sampling) < 0.01


def test_a_probability_that_just_reaches_top_p_is_a_near_tie() -> None:
    logits_BV = torch.tensor([0.5, 0.3, 0.2]).log().expand(2000, -1)
    for top_p in (0.80001, 0.79999):
        assert near_ties(logits_BV, Sampling(1.0, top_p=top_p)) > 0.1
    assert near_ties(logits_BV, Sampling(1.0, top_p=0.75)) < 0.01


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(0.7), Sampling(1.0, top_k=10), Sampling(1.0, top_p=0.9)]
)
def test_a_difference_by_rounding_is_flagged_and_flags_are_rare(sampling: Sampling) -> None:
    logits_BV, seeds = some_logits(5000, 101), range(5000)
    shift = 0.4 * ROUNDING * logits_BV.abs().amax(-1, keepdim=True)
    nudged = logits_BV + shift * (2 * torch.rand(logits_BV.shape) - 1)
    one, two = (next_tokens(logits, sampling, Noise(seeds)) for logits in (logits_BV, nudged))
    different = one.token_B != two.token_B
    assert (one.near_tie_B | ~different).all()
    assert one.near_tie_B.double().mean() < 0.02
