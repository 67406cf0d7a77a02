"""Metrics where Prometheus would read them: on the port that Ray's own agent serves."""

import re
import time
import urllib.request

import ray

from dasm_ray.runtime.metrics import Metrics


def served(wanted: set[str]) -> dict[str, float]:
    """The metrics of the node by ``name{stage}``, once all that are wanted are there."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end, found = time.monotonic() + 60, dict[str, float]()
    while wanted - found.keys():
        assert time.monotonic() < end, sorted(wanted - found.keys())
        time.sleep(1)
        page = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = re.findall(r'^ray_(dasm_ray_\w+)\{(.*run="metric test".*)\} (\S+)$', page, re.MULTILINE)
        found = {f"{name} {re.search('stage=.(.*?)[^a-z ]', tags)[1]}": float(value) for name, tags, value in lines}
    return found


def test_what_the_display_is_told_is_served_to_prometheus(ray_session: object) -> None:
    metrics = Metrics("metric test")
    metrics(kind="stage", stage="scores", detail="", total=2, done=0)
    metrics(kind="probe", accuracy=0.75)
    metrics(kind="progress", stage="scores", done=1, total=2, samples=100, samples_per_second=50.0)
    metrics(kind="stage", stage="distil", detail="segment 1 of 2", total=8, done=2)
    metrics(kind="workers", workers=3, lost=0)
    metrics(kind="progress", stage="distil", done=3, total=8, samples=64, samples_per_second=16.0, distance=12.5)
    metrics(kind="workers", workers=2, lost=1)
    metrics(kind="note", text="a word")
    metrics(kind="workers", workers=3, lost=4)
    metrics(kind="progress", stage="distil", done=4, total=8, samples=64, samples_per_second=32.0, distance=11.5)
    expected = {
        "dasm_ray_probe_accuracy scores": 0.75,
        "dasm_ray_samples_total scores": 100,
        "dasm_ray_samples_per_second scores": 50,
        "dasm_ray_rounds distil": 4,
        "dasm_ray_samples_total distil": 128,
        "dasm_ray_samples_per_second distil": 32,
        "dasm_ray_distance distil": 11.5,
        "dasm_ray_workers distil": 3,
        "dasm_ray_lost_tasks_total distil": 4,
    }
    found = served(set(expected))
    assert {name: found[name] for name in expected} == expected
