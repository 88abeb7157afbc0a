"""What a denoiser predicts: every kind against formulas written out, and schedulers that do not fit."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from smalti.generation.objectives import check_scheduler, draw_times, noised, prediction_of


def parts():
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 4, 3, 3, 3, generator=generator).unbind()
    return clean, noise, torch.tensor([0.0, 0.25, 0.5, 0.999])


def test_flow_mixes_along_straight_lines():
    clean, noise, times = parts()
    found = noised(FlowMatchEulerDiscreteScheduler(), clean, noise, times)
    at = times.view(4, 1, 1, 1)
    torch.testing.assert_close(found.noisy, (1 - at) * clean + at * noise)
    torch.testing.assert_close(found.target, noise - clean)
    torch.testing.assert_close(found.timesteps, times * 1000)


def test_a_shift_moves_times_towards_noise():
    clean, noise, times = parts()
    found = noised(FlowMatchEulerDiscreteScheduler(shift=3.0), clean, noise, times)
    torch.testing.assert_close(found.timesteps / 1000, 3 * times / (1 + 2 * times))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[0.5])  # diffusers shifts in sampling as we do in training
    assert float(scheduler.sigmas[0]) == pytest.approx(3 * 0.5 / 2)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_variances_are_those_of_the_betas(kind, scheduler):
    clean, noise, times = parts()
    found = noised(scheduler(prediction_type=kind, beta_schedule="linear"), clean, noise, times)
    kept = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000), 0)
    expected = torch.tensor([0, 250, 500, 999])
    signal, share = kept[expected].sqrt().view(4, 1, 1, 1), (1 - kept[expected]).sqrt().view(4, 1, 1, 1)
    assert found.timesteps.tolist() == expected.tolist()
    torch.testing.assert_close(found.noisy, signal * clean + share * noise)
    targets = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - share * clean}
    torch.testing.assert_close(found.target, targets[kind])


@pytest.mark.parametrize("scheduler", [DDIMScheduler(prediction_type=k) for k in ("epsilon", "sample", "v_prediction")])
def test_one_exact_step_gives_the_clean_thing(scheduler):
    """A network that says the target undoes the noise: training and sampling mean the same by it."""
    clean, noise, _ = parts()
    found = noised(scheduler, clean, noise, torch.full((4,), 0.5))
    scheduler.set_timesteps(10)
    step = scheduler.step(found.target, 500, found.noisy)
    torch.testing.assert_close(step.pred_original_sample, clean.clamp(-1, 1), atol=1e-4, rtol=1e-4)


def test_a_straight_path_is_walked_in_one_step():
    clean, noise, _ = parts()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(1)
    found = scheduler.step(noise - clean, scheduler.timesteps[0], noise, return_dict=False)[0]
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-5)


def test_even_times_are_stratified():
    times = draw_times("uniform", 64, torch.Generator().manual_seed(0))
    assert sorted((times * 64).long().tolist()) == list(range(64))
    assert float(times.max()) < 1
    drawn = draw_times("logit-normal", 10_000, torch.Generator().manual_seed(0))
    assert float(drawn.median()) == pytest.approx(0.5, abs=0.02)
    assert float(((drawn > 0.2689) & (drawn < 0.7311)).float().mean()) == pytest.approx(
        0.6827, abs=0.02
    )  # one deviation


def test_predictions_are_named_and_others_refused():
    assert prediction_of(HeunDiscreteScheduler(prediction_type="epsilon")) == "epsilon"
    assert prediction_of(FlowMatchEulerDiscreteScheduler()) == "flow"
    flowing = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert prediction_of(flowing) == "flow"
    said = "trained to predict 'flow', got a DDIMScheduler of prediction type 'epsilon'; take a scheduler of 'flow'"
    with pytest.raises(ValueError, match=said):
        check_scheduler(DDIMScheduler(), "flow")
    odd = DDIMScheduler()
    odd.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="one of the predictions epsilon, sample, v_prediction, flow, got 'score'"):
        prediction_of(odd)
