"""How a run goes, as metrics of Ray: its dashboard and Prometheus show them beside those of the cluster.

What must stay true: metrics get the facts that the display gets, and nothing of a run depends on them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from dasm_ray.plain import Plain, Tree


class Metrics:
    """Hears the events of a run's display. Each metric is tagged with the run's name and the stage.

    Prometheus reads them with ``ray_`` before their names, and ``_total`` after those of counters.

    - ``dasm_ray_rounds``, gauge: rounds done in the stage that distils, over all groups.
    - ``dasm_ray_samples``, counter: images worked on. ``dasm_ray_samples_per_second``, gauge: since the stage began.
    - ``dasm_ray_distance``, gauge: the latest matching distance.
    - ``dasm_ray_probe_accuracy``, gauge in [0, 1]: of the latest probe, on the training images.
    - ``dasm_ray_workers``, gauge: workers alive. ``dasm_ray_lost_tasks``, counter: tasks lost and given again.
    """

    def __init__(self, run: str) -> None:
        self._run, self._stage, self._lost = run, "", 0
        self._rounds = _gauge("rounds", "Rounds done.")
        self._samples = Counter("dasm_ray_samples", "Images worked on.", ("run", "stage"))
        self._rate = _gauge("samples_per_second", "Images worked on in a second, since the stage began.")
        self._distance = _gauge("distance", "The latest matching distance.")
        self._probe = _gauge("probe_accuracy", "Accuracy in [0, 1] of the latest probe on the training images.")
        self._workers = _gauge("workers", "Workers alive.")
        self._losses = Counter("dasm_ray_lost_tasks", "Tasks lost and given again.", ("run", "stage"))

    def __call__(self, *, kind: str, **fields: Plain) -> None:
        """Takes one event; kinds that say nothing in numbers are passed over."""
        self._stage = fields.get("stage", self._stage)
        tags = {"run": self._run, "stage": self._stage}
        if kind == "progress":
            self._progress(fields, tags)
        elif kind == "workers":
            self._workers.set(fields["workers"], tags)
            if fields["lost"] > self._lost:
                self._losses.inc(fields["lost"] - self._lost, tags)
                self._lost = fields["lost"]
        elif kind == "probe":
            self._probe.set(fields["accuracy"], tags)

    def _progress(self, fields: Tree, tags: dict[str, str]) -> None:
        if self._stage == "distil":
            self._rounds.set(fields["done"], tags)
        if fields["samples"]:
            self._samples.inc(fields["samples"], tags)
            self._rate.set(fields["samples_per_second"], tags)
        if "distance" in fields:
            self._distance.set(fields["distance"], tags)


def _gauge(name: str, description: str) -> Gauge:
    return Gauge(f"dasm_ray_{name}", description, ("run", "stage"))
