"""Made-up records of the peers benchmark."""

import dataclasses

from benchmarks.peers.frameworks import PeerRecord, Race
from benchmarks.peers.worker import Measurement
from helpers.records import make_environment

RACE = Race(
    model="mlp",
    batch_size=128,
    train_images=60_000,
    steady_epochs=3,
    dataset="mnist",
    checksum="0",
    code="c0de",
    packages="torch 2",
)


def record(
    framework: str, number: int, seconds: float, device: str = "made up", **changes
) -> PeerRecord:
    """Returns a measurement with three steady epochs of the same time."""
    return PeerRecord(
        race=dataclasses.replace(RACE, **changes),
        framework=framework,
        round=number,
        environment=make_environment(device=device),
        result=Measurement(
            epoch_seconds=[9.0, seconds, seconds, seconds],
            test_accuracy=0.97,
            parameters=118_282,
            peak_rss_mb=400,
        ),
    )


def rounds(framework: str, *seconds: float) -> list[PeerRecord]:
    return [record(framework, number, s) for number, s in enumerate(seconds, 1)]
