//! What the callers of the clients do: acquire, write under the lock, give back, again.

use std::time::Duration;

use dlock_core::{ClaimId, Place, RetryPolicy};

use super::queue::Happening;
use super::simulation::Simulation;
use super::surroundings::{News, Want};
use super::world::millis;
use crate::history::{Event, Op, Refusal};
use crate::plan::{Fault, Site};

/// A caller of one client.
#[derive(Default)]
pub(super) struct Caller {
    /// Acquisitions still to be made.
    pub(super) rounds: u8,
    /// Acquisitions made.
    made: u32,
    /// The next one has its time.
    planned: bool,
    /// What it wants and has no answer to, at the gate or on its way.
    pub(super) wanted: Option<Want>,
    /// The acquisition under whose lock it works.
    pub(super) holding: Option<Op>,
    /// A write of it is under way.
    writing: bool,
    /// It gives the lock back once that write has arrived.
    release_due: bool,
}

/// What a caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It wants the lock.
    Want,
    /// It is on its way to the lock, where something may strike.
    Acquiring,
    /// It drops its acquisition.
    Cancel,
    /// It waits no longer at the gate.
    Deadline,
    /// It works under the lock, where something may strike.
    Holding,
    /// It checks that it holds the lock, and writes.
    Write,
    /// It has checked, and writes.
    WriteOut,
    /// It gives the lock back.
    Release,
}

/// How long a try goes on when the store does not answer, as in dlock.
const TRY_LIMIT: Duration = Duration::from_secs(5);

// What a draw is for.
const THINK: u64 = 1;
const TRIES: u64 = 2;
const DEADLINE: u64 = 3;
const ATTEMPTS: u64 = 4;
const ACQUIRING: u64 = 5;
const HOLD: u64 = 6;
const HOLDING: u64 = 7;
const WRITE: u64 = 8;
const OVERLAP: u64 = 9;
const LET_GO: u64 = 10;
const TRANSIT: u64 = 11;

impl Caller {
    pub(super) fn new(rounds: u8) -> Self {
        Self { rounds, ..Self::default() }
    }

    /// Whether it wants and has nothing any more, and will not.
    pub(super) fn is_done(&self, releasing: bool) -> bool {
        self.rounds == 0 && self.wanted.is_none() && self.holding.is_none() && !releasing
    }
}

impl Simulation<'_> {
    fn draw(&self, what: u64, op: Op, below: u64) -> u64 {
        self.world.config.draw(&[0xCA11, what, op.into()]) % below.max(1)
    }

    fn step_at(&mut self, client: u8, op: Op, after: u64, step: Step) {
        self.world.schedule(self.world.now + after, Happening::Steps { client, op, step });
    }

    /// Sees to the next round, unless it is already seen to.
    pub(super) fn plan_next(&mut self, c: u8) {
        let caller = &mut self.callers[usize::from(c)];
        if caller.rounds > 0 && !caller.planned && caller.wanted.is_none() {
            caller.planned = true;
            let next = u32::from(c) * 1_000 + caller.made;
            let think = self.draw(THINK, next, millis(self.world.config.hold_ms) / 2);
            self.step_at(c, 0, think, Step::Want);
        }
    }

    pub(super) fn step(&mut self, c: u8, op: Op, step: Step) {
        let caller = &self.callers[usize::from(c)];
        let wanted = caller.wanted.is_some_and(|want| want.op == op);
        let holding = caller.holding == Some(op);
        match step {
            Step::Want => self.want(c),
            Step::Acquiring if wanted => self.acquiring(c, op),
            Step::Cancel if wanted => self.give_up(c, op, Refusal::Cancelled),
            Step::Deadline if wanted && !self.client(c).is_acquiring() => self.give_up(c, op, Refusal::TimedOut),
            Step::Holding if holding => self.holding(c, op),
            Step::Write if holding => self.write(c, op),
            Step::WriteOut => self.write_out(c, op),
            Step::Release if holding => self.release(c, op),
            _ => {}
        }
    }

    fn want(&mut self, c: u8) {
        let caller = &mut self.callers[usize::from(c)];
        caller.planned = false;
        if caller.rounds == 0 || caller.wanted.is_some() {
            return;
        }
        caller.rounds -= 1;
        let op = u32::from(c) * 1_000 + caller.made;
        caller.made += 1;
        let config = self.world.config;
        let tries = self.draw(TRIES, op, 100) < config.tries_percent.into();
        let patience = match self.draw(DEADLINE, op, 8) {
            _ if tries => Some(TRY_LIMIT),
            0 => Some(Duration::from_nanos(1 + self.draw(DEADLINE << 8, op, millis(config.ttl_ms) * 3))),
            _ => None,
        };
        let retry = if self.draw(ATTEMPTS, op, 8) == 0 { RetryPolicy::default().attempts(3) } else { RetryPolicy::default() };
        let place = if tries { Place::Try } else { Place::Queue };
        let clock = self.world.clocks[usize::from(c)];
        let deadline = patience.map(|patience| clock.at(self.world.now).plus(patience));
        self.world.tell(Some(c), Event::Wants { op, tries });
        if tries && !self.client(c).is_idle() {
            // A try at a closed gate is answered without a request.
            self.world.tell(Some(c), Event::Refused { op, why: Refusal::Busy });
            return self.plan_next(c);
        }
        self.callers[usize::from(c)].wanted = Some(Want { op, place, retry, deadline });
        let soon = self.draw(ACQUIRING, op, millis(config.latency_ms) * 3);
        self.step_at(c, op, soon, Step::Acquiring);
        if let Some(at) = deadline.and_then(|deadline| clock.truth(deadline)) {
            self.step_at(c, op, at - self.world.now, Step::Deadline);
        }
        self.pass_gate(c);
    }

    /// Begins what is wanted, if the gate is open.
    pub(super) fn pass_gate(&mut self, c: u8) {
        if let Some(want) = self.callers[usize::from(c)].wanted
            && self.client(c).is_idle()
        {
            self.act(c, |client, around| client.want(want, around));
        }
    }

    fn acquiring(&mut self, c: u8, op: Op) {
        match self.world.visit(Site::Acquiring, c) {
            Some(Fault::Pause(lasts)) => self.pause(c, lasts),
            Some(Fault::Crash) => return self.crash(c),
            Some(Fault::Cancel(after)) => self.step_at(c, op, millis(after), Step::Cancel),
            _ => {}
        }
        let again = millis(self.world.config.ttl_ms) / 2;
        let later = again / 2 + self.draw(ACQUIRING, op ^ (self.world.now as u32), again);
        self.step_at(c, op, later, Step::Acquiring);
    }

    /// Drops what is wanted, at the gate or on its way.
    fn give_up(&mut self, c: u8, op: Op, why: Refusal) {
        if self.client(c).is_acquiring() {
            return self.act(c, |client, around| client.cancel(around));
        }
        self.callers[usize::from(c)].wanted = None;
        self.world.tell(Some(c), Event::Refused { op, why });
        self.plan_next(c);
    }

    /// Goes on after what a client told.
    pub(super) fn react(&mut self, c: u8, news: News) {
        let caller = &mut self.callers[usize::from(c)];
        match news {
            News::Held { op, .. } => {
                caller.wanted = None;
                (caller.holding, caller.release_due) = (Some(op), false);
                self.work(c, op);
            }
            News::HeldTooLate { .. } => {}
            News::Refused { .. } => {
                caller.wanted = None;
                self.plan_next(c);
            }
            News::Lost { op, .. } => {
                if caller.holding == Some(op) {
                    caller.holding = None;
                }
                self.plan_next(c);
            }
            News::Undone { claim, .. } => {
                if self.world.releasing[usize::from(c)] == Some(claim) {
                    self.world.releasing[usize::from(c)] = None;
                    self.plan_next(c);
                }
            }
        }
    }

    /// Plans what is done under the lock.
    fn work(&mut self, c: u8, op: Op) {
        let hold = 1 + self.draw(HOLD, op, millis(self.world.config.hold_ms));
        for n in 0..=self.draw(WRITE, op, 3) {
            let at = self.draw(WRITE << 8 | n, op, hold);
            self.step_at(c, op, at, Step::Write);
        }
        let at = self.draw(HOLDING, op, hold);
        self.step_at(c, op, at, Step::Holding);
        self.step_at(c, op, hold, Step::Release);
        let caller = &mut self.callers[usize::from(c)];
        if caller.rounds > 0 && !caller.planned && self.world.config.draw(&[OVERLAP, op.into()]).is_multiple_of(4) {
            // Somebody else of this process comes to the gate meanwhile.
            caller.planned = true;
            let at = self.draw(OVERLAP, op, hold);
            self.step_at(c, 0, at, Step::Want);
        }
    }

    fn holding(&mut self, c: u8, op: Op) {
        let Some(fault) = self.world.visit(Site::Holding, c) else { return };
        match fault {
            Fault::Pause(lasts) => return self.pause(c, lasts),
            Fault::Crash => return self.crash(c),
            _ => {}
        }
        let key = self.world.terms.key.clone();
        let claim = self.client(c).granted().map(|(claim, _)| claim);
        let holder = self.world.store.holder_of(&key).map(|(session, claim, _)| (session.clone(), claim));
        let Some((session, _)) = holder.filter(|(_, holder)| Some(*holder) == claim) else { return };
        debug_assert_eq!(claim.map(super::op_of), Some(op), "a caller holds what its client holds");
        match fault {
            Fault::EndSession => self.world.interfere(|store, now| store.end_session(&session, now)),
            Fault::DeleteKey => {
                self.world.deleted = true;
                self.world.interfere(|store, _| store.delete(&key));
            }
            Fault::ReleaseByForce => self.world.interfere(|store, _| _ = store.evict(&key)),
            _ => {}
        }
    }

    fn write(&mut self, c: u8, op: Op) {
        let now = self.world.clocks[usize::from(c)].at(self.world.now);
        if self.client(c).believed(now).is_none() || self.callers[usize::from(c)].writing {
            return;
        }
        match self.world.visit(Site::Writing, c) {
            Some(Fault::Crash) => return self.crash(c),
            // Stopped between its check and its write, it goes on with the write.
            Some(Fault::Pause(lasts)) => self.pause(c, lasts),
            _ => {}
        }
        self.callers[usize::from(c)].writing = true;
        self.happen(Happening::Steps { client: c, op, step: Step::WriteOut });
    }

    fn write_out(&mut self, c: u8, op: Op) {
        let Some(token) = self.tokens[usize::from(c)].filter(|(held, _)| *held == op).map(|(_, token)| token) else { return };
        let transit = 1 + self.draw(TRANSIT, op ^ (self.world.now as u32), millis(self.world.config.latency_ms));
        self.world.schedule(self.world.now + transit, Happening::Writes { client: c, op, token });
    }

    /// A write arrives at the resource.
    pub(super) fn written(&mut self, c: u8, op: Op, token: u64) {
        let granted = self.world.granted_at(op);
        for event in self.world.resource.write(self.world.now, op, token, granted) {
            self.world.tell(Some(c), event);
        }
        let caller = &mut self.callers[usize::from(c)];
        caller.writing = false;
        if std::mem::take(&mut caller.release_due) && caller.holding == Some(op) {
            self.step_at(c, op, 0, Step::Release);
        }
    }

    fn release(&mut self, c: u8, op: Op) {
        let caller = &mut self.callers[usize::from(c)];
        if caller.writing {
            caller.release_due = true;
            return;
        }
        caller.holding = None;
        self.world.tell(Some(c), Event::Releasing { op });
        let let_go = self.draw(LET_GO, op, 4) == 0;
        let claim: Option<ClaimId> = self.client(c).granted().map(|(claim, _)| claim);
        self.world.releasing[usize::from(c)] = claim.filter(|_| !let_go);
        self.act(c, |client, around| client.release(around));
        self.plan_next_unless_releasing(c);
    }

    fn plan_next_unless_releasing(&mut self, c: u8) {
        if self.world.releasing[usize::from(c)].is_none() {
            self.plan_next(c);
        }
    }
}
