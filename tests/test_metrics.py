"""The metrics page, and what of it another process shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.servers import parse_metrics
from voicegate import metrics
from voicegate.metrics import Sample


@pytest.fixture
def exposed() -> Iterator[None]:
    def broken() -> list[Sample]:
        raise RuntimeError("this source is broken")

    calls = Sample("voicegate_test_calls", "gauge", "Calls now.", {"transceiver": "7"}, 3)
    with contextlib.ExitStack() as stack:
        for source in (broken, lambda: [calls]):
            stack.callback(metrics.expose(source))
        metrics.histogram("voicegate_test_seconds", "A time.", (0.1, 1.0)).observe(0.5)
        yield


@pytest.mark.usefixtures("exposed")
def test_another_process_shows_the_same_with_a_label_more() -> None:
    own = {
        key: value for key, value in parse_metrics(metrics.render().decode()).items() if "_test_" in key[0]
    }
    told = metrics.samples(worker="1")
    with contextlib.ExitStack() as stack:
        stack.callback(metrics.expose(lambda: told))
        page = parse_metrics(metrics.render().decode())
    for (name, labels), value in own.items():
        if not name.endswith("_created"):
            assert page[name, labels | {("worker", "1")}] == value, name
    assert page.total("voicegate_test_seconds_bucket", le="1.0", worker="1") == 1
    assert page.total("voicegate_test_calls") == 2 * 3
