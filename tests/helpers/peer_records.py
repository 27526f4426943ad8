"""Made-up records of the peers benchmark."""

from benchmarks.peers.frameworks import PeerRecord, Setup
from helpers.records import make_environment

SETUP = Setup(
    code="c0de",
    device="made up",
    cores=2,
    versions={"jax": "1"},
    dataset="mnist",
    checksum="0",
    train_images=60_000,
    steady_epochs=3,
)
ENVIRONMENT = make_environment(device="made up")


def record(
    framework: str, number: int, seconds: float, model: str = "mlp", **changes
) -> PeerRecord:
    """Returns a measurement with three steady epochs of the same time."""
    values = dict(
        round=number,
        framework=framework,
        model=model,
        batch_size=128,
        run=SETUP,
        environment=ENVIRONMENT,
        date="2026-01-01",
        load=0.1,
        result={
            "epoch_seconds": [9.0, seconds, seconds, seconds],
            "test_accuracy": 0.97,
            "parameters": 118_282,
            "form": "made up",
            "peak_rss_mb": 400,
        },
    )
    return PeerRecord(**{**values, **changes})


def rounds(framework: str, *seconds: float) -> list[PeerRecord]:
    return [record(framework, number, s) for number, s in enumerate(seconds, 1)]
