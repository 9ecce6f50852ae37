"""From the configuration to what listens for turns in each call, and the threads for judges that take
long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import trio

from voicegate import logs, metrics
from voicegate.agents.dialing import configured_session
from voicegate.config import Config, ConfigError
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import TurnJudge, Verdict
from voicegate.media.turns.settings import TurnSettings
from voicegate.roles.transceiver.detection import detection_for
from voicegate.roles.transceiver.outbox import Allowance
from voicegate.roles.transceiver.turn_events import MAX_KINDS, Question, Told
from voicegate.roles.transceiver.turn_plan import TurnPlan
from voicegate.turn_config import turn_plugins, turn_settings
from voicegate.turn_plugins import TurnPlugins

JUDGE_THREADS: Final = 2
"""Judges at work at once. One answer takes some tens of milliseconds of one core; more threads would take the
cores from the media loop."""

MAX_QUESTIONS: Final = 64
"""Questions that wait for a thread: a second's. What comes then is not asked, and its turn ends by its
ceiling."""

LOG_LINES: Final = 50.0
"""Decisions logged a second, at level debug: those of some ten calls in which everybody hesitates."""

BUCKETS: Final = (0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 8.0)
"""Seconds: from two frames, which nothing decides below, to eagerness low's longest wait."""

_OBSERVED: Final = {
    "ended": ("silence_ms", "end", "From the last voice of a turn to its end."),
    "output_paused": ("after_ms", "pause", "From the first voice over the agent's to holding it."),
    "output_stopped": ("after_ms", "stop", "From the first voice over the agent's to stopping it."),
}

_logger = logs.get_logger(__name__)


def turn_plan(config: Config) -> TurnPlan:
    """What the configuration says of turns. Raises ConfigError for a plug-in that cannot be had."""
    agent, defaults = config.agent, turn_settings(config.turns)
    try:
        plugins = turn_plugins(config.turns)
        detection_for(configured_session(agent), agent.turn_detection, defaults)
    except ValueError as error:
        raise ConfigError(f"[turns]: {error}") from None
    return TurnPlan(agent.turn_detection, defaults, _Listening(plugins), config.turns.pause_upstream)


class _Listening:
    """Each call's machine, with plug-ins of its own."""

    def __init__(self, plugins: TurnPlugins) -> None:
        self._plugins = plugins

    def machine(self, settings: TurnSettings) -> tuple[TurnMachine, TurnJudge]:
        judge = self.judge(settings)
        activity = self._plugins.activity(settings, _failed)
        return TurnMachine(settings, activity, judge, self._plugins.policy(settings, _failed)), judge

    def judge(self, settings: TurnSettings) -> TurnJudge:
        return self._plugins.judge(settings, _failed)


class TurnDesk:
    """What calls say of their turns: counted, observed, logged, and judges asked in threads.

    `answer` takes a verdict for a call.
    """

    def __init__(self, nursery: trio.Nursery, answer: Callable[[str, Verdict], None]) -> None:
        self._answer = answer
        self._nursery = nursery
        self._threads = trio.CapacityLimiter(JUDGE_THREADS)
        self._waiting = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._allowance = Allowance(rate=LOG_LINES, burst=4 * LOG_LINES)
        self._histograms = {
            what: (field, metrics.histogram(f"voicegate_transceiver_turn_{name}_seconds", help, BUCKETS))
            for what, (field, name, help) in _OBSERVED.items()
        }

    def take(self, call_id: str, news: Told | Question, now: float) -> None:
        """Something that a call's turns have to say."""
        if isinstance(news, Question):
            self._ask(call_id, news)
            return
        counted = (news.what, news.reason)
        if counted not in self._counts and len(self._counts) >= MAX_KINDS:
            counted = (news.what, "other")
        self._counts[counted] += 1
        if (observed := self._histograms.get(news.what)) is not None:
            field, histogram = observed
            if field in news.fields:
                histogram.observe(news.fields[field] / 1000)
        if self._allowance.take(now):
            _logger.debug("turn", call=call_id, decision=news.what, reason=news.reason, **news.fields)

    def samples(self, labels: Mapping[str, str]) -> Iterator[metrics.Sample]:
        """For the metrics page."""
        help = "What was decided about turns, by decision and reason."
        for (what, reason), value in self._counts.items():
            both = {**labels, "decision": what, "reason": reason}
            yield metrics.Sample("voicegate_transceiver_turns_total", "counter", help, both, value)

    def _ask(self, call_id: str, question: Question) -> None:
        if self._waiting >= MAX_QUESTIONS:
            self._counts["judge_unasked", ""] += 1
            return
        self._waiting += 1
        self._nursery.start_soon(self._ask_in_thread, call_id, question)

    async def _ask_in_thread(self, call_id: str, question: Question) -> None:
        try:
            verdict = await trio.to_thread.run_sync(
                question.judge.judge, question.pause, limiter=self._threads, abandon_on_cancel=True
            )
        except Exception as error:
            _failed("turn judge", error)
            return
        finally:
            self._waiting -= 1
        self._answer(call_id, verdict)


def _failed(name: str, error: Exception) -> None:
    _logger.error("a turn plug-in failed in a call, which goes on with ours", plugin=name, exc_info=error)
