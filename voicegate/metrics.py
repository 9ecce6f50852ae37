"""Prometheus metrics: what a role counts is asked for when somebody looks, never pushed on a hot path.

A role keeps plain integers and exposes a function that reads them:

    forget = metrics.expose(lambda: [Sample("voicegate_relay_drops_total", "counter", "Packets dropped.",
                                            {"reason": "expired"}, 3)])

A worker process has no page of its own for them: its supervisor shows what `samples` gives there.

Names: `voicegate_<role>_...`; counters end in `_total`. Samples of the same name and labels (two roles of a
kind in one process) are added up. Only durations are observed as they happen: see `histogram`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from voicegate import logs

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SETUP_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Seconds: from a set-up on loopback (about 10 ms) to where a person has given up."""

_log = logs.get_logger(__name__)


class Sample(NamedTuple):
    """One value as it is now."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    """The samples of a histogram are named `..._bucket` (with the label `le`), `..._sum` and `..._count`."""
    help: str
    labels: Mapping[str, str]
    value: float


Source = Callable[[], Iterable[Sample]]


def expose(source: Source) -> Callable[[], None]:
    """Show what `source` returns on every later `render`; call the result to take it away again."""
    entry = (source,)  # a tuple of its own: the same function may be exposed twice
    _sources.append(entry)

    def forget() -> None:
        _sources[:] = [other for other in _sources if other is not entry]

    return forget


def histogram(
    name: str, help: str, buckets: Sequence[float] = SETUP_BUCKETS, labels: Sequence[str] = ()
) -> Histogram:
    """The process's histogram of this name, made on first use; `.observe(seconds)` or
    `.labels(...).observe(...)`."""
    if name not in _histograms:
        _histograms[name] = Histogram(name, help, tuple(labels), buckets=tuple(buckets), registry=_registry)
    return _histograms[name]


def samples(**labels: str) -> list[Sample]:
    """What the page shows of this process's roles, with these labels more: for the page of another one."""
    found = [*_exposed(), *(sample for each in _histograms.values() for sample in _observed(each))]
    return [sample._replace(labels={**sample.labels, **labels}) for sample in found]


def render() -> bytes:
    """The whole page in the text format `CONTENT_TYPE`."""
    return generate_latest(_registry)


class _Sources(Collector):
    def collect(self) -> Iterator[Metric]:
        families: dict[str, tuple[Sample, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
        for sample in _exposed():
            _, values = families.setdefault(_family_name(sample), (sample, {}))
            labels = tuple(sorted((key, str(value)) for key, value in sample.labels.items()))
            values[sample.name, labels] = values.get((sample.name, labels), 0.0) + sample.value
        for first, values in families.values():
            family = _family(first)
            for (name, labels), value in values.items():
                family.add_sample(name, dict(labels), value)
            yield family


def _exposed() -> Iterator[Sample]:
    for (source,) in tuple(_sources):
        try:
            yield from list(source())
        except Exception:  # one broken source must not hide the others when they are needed most
            _log.exception("a metrics source failed")


def _observed(histogram: Histogram) -> Iterator[Sample]:
    for metric in histogram.collect():
        for name, labels, value, *_ in metric.samples:
            if not name.endswith("_created"):
                yield Sample(name, "histogram", metric.documentation, labels, value)


def _family(sample: Sample) -> Metric:
    if sample.kind == "counter":
        return CounterMetricFamily(sample.name, sample.help)
    if sample.kind == "histogram":
        return Metric(_family_name(sample), sample.help, "histogram")
    return GaugeMetricFamily(sample.name, sample.help)


def _family_name(sample: Sample) -> str:
    return sample.name.rpartition("_")[0] if sample.kind == "histogram" else sample.name


def histogram_samples(
    name: str, help: str, labels: Mapping[str, str], cumulative: Sequence[tuple[str, float]], total: float
) -> Iterator[Sample]:
    """The samples of a histogram that was counted elsewhere: (upper bound, observations up to it), the last
    one `+Inf`, and the sum of what was observed."""
    for bound, count in cumulative:
        yield Sample(f"{name}_bucket", "histogram", help, {**labels, "le": bound}, count)
    yield Sample(f"{name}_sum", "histogram", help, labels, total)
    yield Sample(f"{name}_count", "histogram", help, labels, cumulative[-1][1])


_sources: list[tuple[Source]] = []
_histograms: dict[str, Histogram] = {}
_registry = CollectorRegistry()
_registry.register(_Sources())
ProcessCollector(registry=_registry)
