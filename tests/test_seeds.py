"""Seeds that are derived from what they are for."""

import torch

from common.seeds import derive_seed


def test_seeds_are_distinct_and_the_same_everywhere() -> None:
    assert derive_seed("epoch", 0, 0) == 2047052173440320259
    parts: list[tuple[int | str, ...]] = [(), (0,), (0, 0), (1, 12), (11, 2), ("112",), (-1,), ("epoch", 1), ("epoc", "h1")]
    parts += [("noise", seed, query, number) for seed in range(3) for query in range(30) for number in range(30)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = torch.tensor(sorted(seeds))[:, None].bitwise_right_shift(torch.arange(63)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.05
