"""A learner on duty: looks at every segment, says why it does not train, begins what is due, resumes what broke.

Joins the decision (`learner.schedule`), the lease (`learner.tenure`) and the page of a cycle (`learner.cycle`) over
one record. Knows nothing of timers, signals or processes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from sqlmodel import Session

from learner.config import LearnerConfig
from learner.cycle import run_cycle
from learner.schedule import Due, NotYet, Standing, due
from learner.tenure import LeaseLost, Tenure, holder
from learner.watch import Stopped, Watch
from learner.work import TooFewVotes, Work
from learner.workdir import WorkDir, sweep
from server.artifacts import Artifacts
from server.errors import Conflict, HoneError, Unavailable
from server.settings import Settings
from server.store import adapters, cycles, feedback, leases
from server.store.ids import now
from server.store.session import Store
from server.store.tables import Cycle

log = logging.getLogger(__name__)

ELSEWHERE = "another learner is at work"


class Duty:
    """One process's learner. Several may look; the lease lets one work."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        artifacts: Artifacts,
        *,
        stop: threading.Event,
        console: Console | None = None,
        run: Callable[[Work], Cycle] = run_cycle,
    ) -> None:
        self._settings = settings
        self._store = store
        self._artifacts = artifacts
        self._stop = stop
        self._console = console
        self._run = run

    def look(self) -> None:
        """One look at the record: work on what is in hand or due, or write down why not. For the scheduler."""
        try:
            self._show_up()
            self._sweep()
            if self._store.read(cycles.next_cycle) is None and not self._anything_due():
                return
            tenure = Tenure.acquire(self._store, seconds=self._settings.learner_lease_seconds)
            if tenure is None:
                log.debug(ELSEWHERE)
                return
            with tenure:
                for _ in self._work_off(tenure):
                    pass
                self._show_up()  # before the lease ends, so that somebody is always there
        except (Stopped, LeaseLost):
            return  # said already, where it happened
        except Unavailable as error:
            log.warning("trying again later: %s", error.message)
        except HoneError as error:
            log.error("%s", error.message)

    def once(self, *, segment: str, dry_run: bool = False) -> Cycle:
        """One cycle of `segment` now; what was begun or asked for before is worked off first, and may be just that.

        Raises NotFound for a segment that is not there, Conflict while another learner works, TooFewVotes, Stopped.
        """
        self._store.read(lambda s: adapters.lane(s, segment))
        self._sweep()
        with self._wait_for_tenure() as tenure:
            for done in self._work_off(tenure):
                if (done.segment, done.dry_run) == (segment, dry_run):
                    return done
            answer = self._decide(segment)
            if isinstance(answer, NotYet) and answer.too_few:
                raise TooFewVotes(f"not training: {answer.why}")
            asked = tenure.write(
                lambda s: cycles.request_cycle(s, segment=segment, by="operator", dry_run=dry_run)
            )
            return self._cycle(tenure, asked)

    def _show_up(self) -> None:
        """Say that a learner is here, well before anybody believes that it has gone; most looks write nothing."""
        seconds = max(self._settings.learner_lease_seconds, 3 * self._settings.learner_poll_seconds)
        if self._store.read(lambda s: leases.seconds_left(s, leases.WATCHING)) < seconds / 2:
            self._store.write(lambda s: leases.show_up(s, holder=holder(), seconds=seconds))

    # --- deciding ------------------------------------------------------------------------------------------

    def _anything_due(self) -> bool:
        """Ask for a cycle where one is due; elsewhere keep the why-not sentence up to date."""
        for row in self._store.read(adapters.list_segments):
            answer = self._decide(row.name)
            if isinstance(answer, Due):
                return self._ask_for(row.name, by=answer.by)
            self._say(row.name, why_not=answer.why, next_due_at=answer.next_due_at)
        return False

    def _decide(self, segment: str) -> Due | NotYet:
        def standing(session: Session) -> Standing:
            state = cycles.learner_state(session, segment)
            settings = self._settings
            last = next(iter(cycles.list_cycles(session, segment=segment, limit=1)[0]), None)
            return Standing(
                live=feedback.count_live_votes(session, segment=segment, most=settings.min_labels),
                new=feedback.count_live_votes(
                    session, segment=segment, after_seq=state.watermark, most=settings.train_every_votes
                ),
                last_run_at=state.last_run_at,
                next_due_at=state.next_due_at,
                backoff_until=state.backoff_until,
                # Refused without a verdict: by the first step, which found too little to train on.
                lacks=last.reason if last and last.state == "refused" and last.verdict is None else "",
            )

        return due(self._store.read(standing), now=now(), settings=self._settings)

    def _ask_for(self, segment: str, *, by: str) -> bool:
        try:
            self._store.write(lambda s: cycles.request_cycle(s, segment=segment, by=by))
        except Conflict:
            return True  # another learner or an operator was faster: there is work either way
        return True

    def _say(self, segment: str, **changes: Any) -> None:
        """Write only what changed: the sentence stands in the log once, not every few seconds."""
        known = self._store.read(lambda s: cycles.learner_state(s, segment))
        fresh = {name: value for name, value in changes.items() if getattr(known, name) != value}
        if not fresh:
            return
        self._store.write(lambda s: cycles.update_learner_state(s, segment, **fresh))
        if "why_not" in fresh:
            log.info("not training: %s", fresh["why_not"], extra={"segment": segment})

    # --- working -------------------------------------------------------------------------------------------

    def _wait_for_tenure(self) -> Tenure:
        """The lease, waited for as long as a dead learner's can last. Raises Conflict while a living one works."""
        seconds = self._settings.learner_lease_seconds
        give_up = time.monotonic() + 1.5 * seconds
        while (tenure := Tenure.acquire(self._store, seconds=seconds)) is None:
            if time.monotonic() > give_up:
                raise Conflict(f"{ELSEWHERE}; `hone serve` runs one unless told not to", code="cycle_running")
            if self._stop.wait(min(0.5, seconds / 10)):
                raise Stopped
        return tenure

    def _sweep(self) -> None:
        """Remove the folders that learners left behind who were killed between a cycle's end and theirs."""
        sweep(
            self._settings.data_dir,
            is_active=lambda cycle_id: self._store.read(lambda s: cycles.is_active(s, cycle_id)),
        )

    def _work_off(self, tenure: Tenure) -> Iterator[Cycle]:
        """Everything that was begun or asked for, each as it ends."""
        while (cycle := self._store.read(cycles.next_cycle)) is not None:
            yield self._cycle(tenure, cycle)

    def _explain(self, segment: str) -> None:
        """Say anew why nothing is trained, now that the cycle has ended."""
        answer = self._decide(segment)
        if isinstance(answer, NotYet):
            self._say(segment, why_not=answer.why, next_due_at=answer.next_due_at)

    def _cycle(self, tenure: Tenure, cycle: Cycle) -> Cycle:
        cycle, rollout = self._begin(tenure, cycle)
        with Watch(cycle.id, tenure=tenure, stop=self._stop, console=self._console) as watch:
            ended = self._run(
                Work(
                    cycle=cycle,
                    rollout=rollout,
                    folder=WorkDir(self._settings.data_dir, cycle.id),
                    store=self._store,
                    artifacts=self._artifacts,
                    tenure=tenure,
                    watch=watch,
                    settings=self._settings,
                )
            )
        self._explain(ended.segment)
        return ended

    def _begin(self, tenure: Tenure, asked: Cycle) -> tuple[Cycle, str]:
        """Fix the cycle's inputs, once; and read the segment's policy."""
        config = LearnerConfig.profile(self._settings.profile)
        config = replace(
            config,
            collect=replace(config.collect, min_labels=self._settings.min_labels),
            ppo=replace(config.ppo, threads=self._settings.learner_threads),
        )

        def work(session: Session) -> tuple[Cycle, str]:
            # What kept it from training holds no more; what does so after the cycle is said and logged anew.
            cycles.update_learner_state(session, asked.segment, why_not="")
            row = cycles.begin(
                session,
                cycle_id=asked.id,
                epoch=tenure.epoch,
                champion=adapters.serving_version(session, asked.segment),
                since=cycles.learner_state(session, asked.segment).watermark,
                through=feedback.newest_seq(session),
                config={**config.to_dict(), "salt": f"replay of {asked.segment}"},
            )
            return row, adapters.ensure_segment(session, asked.segment).rollout

        return tenure.write(work)
