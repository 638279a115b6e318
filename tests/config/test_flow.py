"""Flow sections that cannot run are refused, by field, value and what is allowed."""

from __future__ import annotations

import pytest

from fasttta_jax.config import ConfigError, FlowConfig, check_flow


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_distribution": "normal"}, "flow.time_distribution is 'normal'; allowed: one of"),
        ({"grid": "cosine"}, "flow.grid is 'cosine'; allowed: one of"),
        ({"solver": "rk4"}, "flow.solver is 'rk4'; allowed: one of 'euler', 'heun'"),
        ({"distance": "feature"}, "flow.distance is 'feature'; allowed: one of"),
        ({"weight": "snr"}, "flow.weight is 'snr'; allowed: one of"),
        ({"tangent": "true"}, "flow.tangent is 'true'; allowed: one of"),
        ({"last_interval": "x"}, "flow.last_interval is 'x'; allowed: one of"),
        ({"sampler": "ddim"}, "flow.sampler is 'ddim'; allowed: one of"),
        ({"time_std": 0.0}, "flow.time_std is 0.0; allowed: above 0"),
        ({"huber": 0.0}, "flow.huber is 0.0; allowed: above 0"),
        ({"target_guidance": 0.0}, "flow.target_guidance is 0.0; allowed: above 0"),
        ({"kappa": 1.0}, "flow.kappa is 1.0; allowed: from 0 up to"),
        ({"equal_share": -0.1}, "flow.equal_share is -0.1; allowed: from 0"),
        ({"equal_share": 0.9, "endpoint_share": 0.2}, "flow.endpoint_share is 0.2; allowed: at m"),
        ({"grid_steps": 1}, "flow.grid_steps is 1; allowed: 2 or more"),
        ({"max_skip": 9}, "flow.max_skip is 9; allowed: from 1 to flow.grid_steps = 8"),
        ({"max_skip": 0}, "flow.max_skip is 0; allowed: from 1"),
        ({"weight": "min_snr"}, "flow.weight is 'min_snr'; allowed: 'none' where flow.grid is"),
        ({"target_decay": 1.0}, "flow.target_decay is 1.0; allowed: from 0 up to"),
        ({"num_draws": 0}, "flow.num_draws is 0; allowed: above 0"),
        ({"guidance_low": -1.0}, "flow.guidance_low is -1.0; allowed: 0 or more"),
        ({"guidance_low": 3.0}, "flow.guidance_high is 1.0; allowed: flow.guidance_low = 3 or"),
        ({"denoising_weight": -1.0}, "flow.denoising_weight is -1.0; allowed: 0 or more"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError) as refused:
        FlowConfig(**fields)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("objective", "fields", "message"),
    [
        ("flow", {"guidance_high": 2.0}, "flow.guidance_high is 2.0; allowed: 1 where objective"),
        ("reflow", {"target_decay": 0.9}, "flow.target_decay is 0.9; allowed: 0 where"),
        ("flow", {"sampler": "renoise"}, "flow.sampler is 'renoise'; allowed: 'deterministic'"),
        ("consistency", {}, "flow.sampler is 'deterministic'; allowed: 'renoise' where"),
        (
            "meanflow",
            {"equal_share": 0.0, "kappa": 0.5},
            "flow.equal_share is 0.0; allowed: above 0 where",
        ),
        ("shortcut", {"grid": "vp"}, "flow.grid is 'vp'; allowed: 'uniform' where"),
        ("shortcut", {"grid_steps": 12}, "flow.grid_steps is 12; allowed: a power of two"),
        ("shortcut", {"kappa": 0.5}, "flow.kappa is 0.5; allowed: 0 where objective"),
        (
            "shortcut",
            {"grid_steps": 128, "bootstrap_share": 0.125},
            "flow.bootstrap_share is 0.125; allowed: 0.21875 or more where objective is 'shortcut'"
            ": one of 32 for each of the 7 lengths of jumps",
        ),
    ],
)
def test_sections_that_do_not_fit_their_objective_are_refused(objective, fields, message):
    with pytest.raises(ConfigError) as refused:
        check_flow(objective, FlowConfig(**fields), 32)
    assert str(refused.value).startswith(message)


def test_the_published_settings_fit():
    told = {"sampler": "renoise", "target_decay": 0.95, "guidance_low": 0.0, "guidance_high": 6.0}
    consistency = FlowConfig(
        grid="vp", grid_steps=17, weight="min_snr", last_interval="data", **told
    )
    check_flow("consistency", consistency, 30)
    trajectory = FlowConfig(
        grid="karras", grid_steps=39, max_skip=39, guidance_low=2.0, guidance_high=5.0
    )
    check_flow("trajectory", trajectory, 48)
    check_flow("shortcut", FlowConfig(grid_steps=128, bootstrap_share=0.125), 256)
    meanflow = FlowConfig(
        time_distribution="logit_normal", equal_share=0.75, kappa=0.5, distance="adaptive"
    )
    check_flow("meanflow", meanflow, 256)
    assert (consistency.tells_guidance, consistency.guides_targets) == (True, False)
    assert (meanflow.tells_guidance, meanflow.guides_targets) == (False, True)
