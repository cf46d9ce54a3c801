"""What a training will need, in orders of magnitude that can be checked by hand."""

from pathlib import Path

import pytest

from sllm_tune.model.find import Base
from sllm_tune.recipe.recipe import Recipe, load_recipe
from sllm_tune.train.estimate import Estimate, Size, describe, estimate

HARDWARE = "hardware={name: a test machine, memory_gb: 1, teraflops: 2}"


SIZE = Size(rows=100, tokens=5000, longest_tokens=80)


def estimated(recipe: Recipe, size: Size = SIZE) -> Estimate:
    base = Base(section=recipe.base_model, folder=recipe.folder)
    return estimate(base, recipe.train, size, recipe.hardware, recipe.evaluate.usd_per_hour)


def test_time_is_four_operations_a_parameter_and_token_at_a_third_of_the_peak(project: Path):
    recipe = load_recipe(project, [HARDWARE, "evaluate.usd_per_hour=3.6"])
    found = estimated(recipe)
    assert found.tokens == 4 * 4 * 50  # max_steps, batch size, mean tokens
    assert found.seconds == pytest.approx(4 * found.parameters * 800 / (2e12 * 0.35))
    assert found.usd == pytest.approx(found.seconds / 1000)


def test_the_adapter_is_counted_from_its_options(project: Path):
    small = estimated(load_recipe(project))
    large = estimated(load_recipe(project, ["train.lora.r=8"]))
    # q, k, v, o, gate, up, down of both layers: r times inputs plus outputs
    assert small.trained_parameters == 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    assert large.trained_parameters == 2 * small.trained_parameters
    assert large.parameters == small.parameters


def test_four_bit_weights_need_about_a_quarter(project: Path):
    nf4 = "base_model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}"
    plain, quantised = (estimated(load_recipe(project, given), Size(9, 90, 10)) for given in ([], [nf4]))
    assert plain.memory_bytes - quantised.memory_bytes == pytest.approx(plain.parameters * 1.45)


def test_what_does_not_fit_is_said(project: Path):
    recipe = load_recipe(project, ["hardware={name: a test machine, memory_gb: 0.001, teraflops: 2}"])
    said = "\n".join(describe(estimated(recipe), recipe.hardware))
    assert "a test machine (0.001 GB): 0.0 GB of memory, DOES NOT FIT; 0.0 minutes; no price set" in said


def test_without_hardware_memory_alone_is_estimated(project: Path):
    recipe = load_recipe(project)
    said = describe(estimated(recipe), recipe.hardware)[-1]
    assert "GB of memory; for time and cost, set hardware:" in said
