"""Finn et al. 2017, section 5.1: the ranges, and one wave an episode."""

import numpy as np

from gpt_modules.data.episodes.sinusoid import Sinusoid


def draw(seed, support=10, query=10):
    return Sinusoid().episode(np.random.default_rng(seed), "train", support, query)


def test_points_lie_on_one_wave():
    """y = a sin x + b cos x: two numbers explain all points."""
    amplitudes, phases = [], []
    for seed in range(300):
        x, y = (points.astype(np.float64)[:, 0] for points in draw(seed))
        (a, b), *_ = np.linalg.lstsq(np.stack([np.sin(x), np.cos(x)], axis=1), y)
        assert np.abs(a * np.sin(x) + b * np.cos(x) - y).max() < 1e-5
        amplitudes.append(np.hypot(a, b))
        phases.append(np.arctan2(-b, a))
    for values, low, high in ((amplitudes, 0.1, 5.0), (phases, 0.0, np.pi)):
        assert low - 1e-4 < min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) < high + 1e-4
        assert abs(np.mean(values) - (low + high) / 2) < 0.08 * (high - low), "0.017 a standard deviation"


def test_shapes_and_range_of_x():
    x, y = draw(0, 400, 600)
    assert x.shape == y.shape == (1000, 1)
    assert x.dtype == y.dtype == np.float32
    assert -5.0 <= x.min() < -4.9 < 4.9 < x.max() <= 5.0


def test_an_episode_is_a_function_of_its_generator():
    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))
