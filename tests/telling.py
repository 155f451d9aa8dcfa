"""A Telemetry without Ray: what was told, in order."""

from moaa_ray.telemetry import Metric, Telemetry


class Heard(Telemetry):
    def __init__(self):
        super().__init__(run="r", stage="s")
        self.said: list[tuple[str, float, dict[str, str]]] = []

    def _tell(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        assert set(labels) == set(metric.labels), metric.name
        self.said.append((metric.name, value, labels))

    def last(self) -> dict[tuple[str, ...], float]:
        """By name and values of labels: gauges as they were told last, counters added up."""
        found: dict[tuple[str, ...], float] = {}
        for name, value, labels in self.said:
            key = (name, *labels.values())
            found[key] = found.get(key, 0) + value if name.endswith("_total") else value
        return found
