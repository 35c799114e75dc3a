"""What runs logged."""

from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event


def points(root: Path) -> dict[str, dict[int, set[float]]]:
    """tag -> step -> the values that were ever logged there; timings, and what depends on them, left out."""
    found: dict[str, dict[int, set[float]]] = defaultdict(lambda: defaultdict(set))
    for file in sorted(root.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.HasField("simple_value") and not value.tag.startswith("perf/"):
                    found[value.tag][event.step].add(value.simple_value)
    return {tag: dict(steps) for tag, steps in found.items()}
