"""The speed run: statistics, choice of recipes, records and tables."""

import dataclasses

import pytest

from benchmarks import speedrun
from benchmarks.speedrun import (
    RECIPES,
    SpeedRecord,
    SpeedRun,
    find_fastest,
    format_fastest,
    format_speed,
    read_recipe,
)
from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.records.environment import current_environment

RECIPE = "--dataset=digits\n--model=mlp\n--hidden=16\n--epochs=2\n--validation=none\n"

REACHED = [0.9904, 0.9907, 0.9905, 0.9908]  # 0.99: t = 6.6 with 3 degrees of freedom


def runs(accuracies: list[float], seconds: list[float]) -> list[SpeedRun]:
    return [SpeedRun(*run) for run in zip(accuracies, seconds, strict=True)]


@pytest.fixture
def record() -> SpeedRecord:
    config = TrainConfig(model="cnn", dataset="mnist", validation="none", epochs=1)
    return SpeedRecord(
        recipe="cnn_99",
        target=0.99,
        config=config,
        runs=runs(REACHED, [0.8, 0.9, 1.0, 5.0]),
        compile_seconds=3.0,
        cached_compile_seconds=0.5,
        parameters=29_000,
        environment=current_environment(),
        peers={"PyTorch": runs([0.99, 0.991], [3.0, 4.0])},
    )


@pytest.mark.parametrize(
    "accuracies, reached",
    [
        (REACHED, True),
        ([0.9902, 0.9915, 0.9880, 0.9910], False),  # above, but p = 0.4
        ([0.9890, 0.9891, 0.9892, 0.9893], False),
    ],
)
def test_a_target_is_reached_if_the_mean_is_significantly_above(
    record, accuracies, reached
):
    changed = dataclasses.replace(record, runs=runs(accuracies, [1.0] * 4))
    assert (find_fastest([changed], 0.99, "mnist", "cnn") is not None) == reached


def test_the_fastest_recipe_that_reached_is_chosen(record):
    def other(recipe: str, accuracies: list[float], seconds: float) -> SpeedRecord:
        done = runs(accuracies, [seconds] * len(accuracies))
        return dataclasses.replace(record, recipe=recipe, runs=done)

    def fastest(records: list[SpeedRecord], target: float, model: str | None) -> str:
        return find_fastest(records, target, "mnist", model).recipe

    slow = other("slow", REACHED, 2.0)
    higher = other("high", [0.995, 0.996, 0.996, 0.997], 9.0)
    missed = other("no", [0.98, 0.981], 0.8)
    records = [slow, record, higher, missed]
    assert fastest(records, 0.99, None) == "cnn_99"
    assert fastest(records, 0.992, "cnn") == "high"
    again = dataclasses.replace(missed, recipe="cnn_99")  # as measured later
    assert fastest([*records, again], 0.99, None) == "slow"
    fast = other("lower", REACHED, 0.1)
    lower = dataclasses.replace(fast, target=0.999)
    assert fastest([*records, lower], 0.99, None) == "lower"
    for target, dataset, model in (
        (0.999, "mnist", None),
        (0.99, "fashion_mnist", None),
        (0.99, "mnist", "mlp"),
    ):
        assert find_fastest(records, target, dataset, model) is None


def test_the_table_shows_records_and_peers(record):
    table = format_speed([record])
    row, peer = table.splitlines()[2:4]
    for cell in ("0.9906 ± 0.0002 (n=4)", "yes", "0.95 [0.80, 5.00]", "4.0", "1.4"):
        assert f" {cell} |" in row or f"| {cell}" in row
    assert "PyTorch" in peer and "3.50 [3.00, 4.00]" in peer


def test_custom_networks_follow_the_built_in_ones(record):
    config = TrainConfig(model="mixer.py:Mixer", dataset="mnist")
    custom = dataclasses.replace(record, config=config, recipe="mixer")
    table = format_speed([custom, record])
    assert -1 < table.index(record.recipe) < table.index("| mixer ")


def test_accuracy_with_tta_has_a_column_of_its_own(record):
    assert "with TTA" not in speedrun.speed_frame([record])
    pair = SpeedRun(0.9905, 1.0, 0.995), SpeedRun(0.9907, 1.0, 0.997)
    averaged = dataclasses.replace(record, runs=[*pair])
    frame = speedrun.speed_frame([record, averaged])
    assert frame["with TTA"].tolist() == ["-", "-", "0.9960 ± 0.0014 (n=2)", "-"]
    assert frame["test accuracy"].iloc[2].startswith("0.9906 ±")


def test_the_readme_has_the_cnns_that_reached_a_target(record):
    missed = dataclasses.replace(record, target=0.995)
    other = dataclasses.replace(
        record, target=0.99, config=TrainConfig(validation="none", epochs=1)
    )
    seconds = [0.5, 0.6, 0.7, 0.8]
    again = dataclasses.replace(record, runs=runs(REACHED, seconds))
    lines = format_fastest([record, missed, other, again]).splitlines()
    assert len(lines) == 3 and " 99 % |" in lines[2] and "0.65 [0.50" in lines[2]


@pytest.mark.parametrize(
    "change, rule",
    [
        ("--validation=fraction", "--validation=none"),
        ("--dataset=auto", "--dataset=mnist or "),
        ("--train_size=1000", "--train_size=none"),
        ("--split=shuffled", "--split=official"),
    ],
)
def test_recipes_that_break_the_rules_are_refused(change, rule, tmp_path):
    file = tmp_path / "recipe.cfg"
    file.write_text(f"{RECIPE}{change}\n")
    with pytest.raises(InputError, match=f"must have .*{rule}"):
        read_recipe(file)


def test_the_recipes_follow_the_rules():
    for path in RECIPES.glob("*.cfg"):
        assert read_recipe(path).dataset in ("mnist", "fashion_mnist")


def test_recipes_are_trained_in_turns_and_recorded(tmp_path, capsys, monkeypatch):
    paths = [tmp_path / "one.cfg", tmp_path / "two.cfg"]
    for path in paths:
        path.write_text(RECIPE)

    starts = [{"compile s": 3.0}, {"compile s": 0.5}]
    monkeypatch.setattr(speedrun, "measure_starts", lambda *_: starts)
    one, two = speedrun.run_recipes(paths, 0.5, 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{name}, seed {seed}" for seed in (0, 1) for name in ("one", "two")
    ]
    for first, second in zip(one.runs, two.runs, strict=True):
        assert first.accuracy == second.accuracy
    assert (one.compile_seconds, one.cached_compile_seconds) == (3.0, 0.5)
    assert one.parameters == 12_730
