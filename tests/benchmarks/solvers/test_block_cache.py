"""The step with a cache by blocks, against the network's own step."""

import pickle

import numpy as np
import pytest
import torch

from benchmarks.solvers.block_cache import CachedStep, CacheSetting
from benchmarks.solvers.step_cache import settings
from benchmarks.solvers.subjects import AS_TRAINED, SUBJECTS, Requests
from qwen_image_engine.runtime.model.time import time_features

STEPS = 6


@pytest.fixture(scope="module")
def requests() -> Requests:
    return Requests(AS_TRAINED, ["a red circle on the left, white background"])


def _noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 256, 16)).astype(np.float32)


@pytest.mark.slow
def test_threshold_zero_is_no_cache_bit_for_bit(requests: Requests) -> None:
    pipeline = requests.pipeline
    conditioning = pipeline.encode(requests.prompts[0])
    *_, last = pipeline.sample(conditioning, width=256, height=256, steps=STEPS, seed=0)
    for head in (1, 2, 7):
        step = requests.step(0, CacheSetting(head, threshold=0, warm_up=0))
        np.testing.assert_array_equal(requests.sample(0, "euler", STEPS, step), last.latents)
        assert (step.whole, step.skipped, step.evaluations) == (STEPS, 0, STEPS)


@pytest.mark.slow
def test_a_subject_of_another_process_has_its_own_network_and_settings() -> None:
    blocks, settled = {}, {}
    for name, subject in SUBJECTS.items():
        copy = pickle.loads(pickle.dumps(subject))
        blocks[name] = len(Requests(copy, []).network.transformer_blocks)
        settled[name] = list(settings(copy))
    assert blocks == {"shapes": 7, "random-blocks": 32, "random": 32}
    assert max(setting.steps for setting in settled["shapes"] if setting.cache is None) == 40
    assert not any(setting.cache and np.isfinite(setting.cache.threshold) for setting in settled["random"])


@pytest.mark.parametrize(
    ("setting", "whole"),
    [
        (CacheSetting(1, np.inf, warm_up=2, most_skips=3), [1, 1, 0, 0, 0, 1, 0, 0]),
        (CacheSetting(2, np.inf, warm_up=0, most_skips=2), [1, 0, 0, 1, 0, 0, 1, 0]),
        (CacheSetting(1, np.inf, warm_up=0, most_skips=1, order=1), [1, 1, 0, 1, 0, 1, 0, 1]),
        (CacheSetting(1, np.inf, warm_up=3, most_skips=99), [1, 1, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_evaluations_count_the_head_of_a_skipped_step(
    requests: Requests, setting: CacheSetting, whole: list[int]
) -> None:
    step = requests.step(0, setting)
    found = []
    for sigma in np.linspace(1, 0.1, len(whole)):
        before = step.whole
        step(_noise(), float(sigma))
        found.append(step.whole - before)
    assert found == whole
    assert step.evaluations == sum(whole) + whole.count(0) * setting.head / 7


def test_threshold_is_compared_with_the_change_since_the_last_whole_evaluation(requests: Requests) -> None:
    step = requests.step(0, CacheSetting(1, threshold=0.5, warm_up=0, most_skips=99))
    for latents in (_noise(0), _noise(0), _noise(1), _noise(1)):
        step(latents, 0.8)
    assert (step.whole, step.skipped) == (2, 2)  # the other noise is another head's residual, the same noise is not


@pytest.mark.parametrize("order", [0, 1])
def test_a_skipped_step_adds_the_residual_to_its_own_head(requests: Requests, order: int) -> None:
    step = requests.step(0, CacheSetting(2, np.inf, warm_up=2, most_skips=9, order=order))
    sigmas = (0.9, 0.8, 0.7)
    rests = []
    for seed, sigma in enumerate(sigmas[:2]):
        step(_noise(seed), sigma)
        head, end, _ = _by_hooks(requests, step, _noise(seed), sigma)
        rests.append(end - head)
    head, _, temb = _by_hooks(requests, step, _noise(2), sigmas[2])
    # (0.7 - 0.8) / (0.8 - 0.9) = 1: as far from the last as the last is from the one before.
    rest = rests[1] if order == 0 else 2 * rests[1] - rests[0]
    with torch.inference_mode():
        expected = requests.network.proj_out(requests.network.norm_out(head + rest, temb))
    np.testing.assert_allclose(step(_noise(2), sigmas[2]), expected.numpy(), rtol=1e-4, atol=1e-5)  # fp32, other order
    assert (step.whole, step.skipped) == (2, 1)


def _by_hooks(
    requests: Requests, step: CachedStep, latents: np.ndarray, sigma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the outputs of the second and the last block and of the time embedding, from the network's own step."""
    network, seen = requests.network, []
    hooks = [
        network.transformer_blocks[index].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
        for index in (1, len(network.transformer_blocks) - 1)
    ]
    try:
        with torch.inference_mode():
            features = torch.as_tensor(time_features(sigma)[None])
            network.step(torch.as_tensor(latents), features, step.cos, step.sin, step.cache)
            temb = network.time_embedding(features)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0], seen[1], temb
