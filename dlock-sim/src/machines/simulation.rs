//! One run: everything in the order of true time, from the first acquisition to the last session closed.

use std::time::Duration;

use dlock_core::{Key, Lease};

use super::around::Around;
use super::client::{Client, op_of};
use super::queue::Happening;
use super::surroundings::{News, Terms};
use super::workload::{Caller, Step};
use super::world::{NEVER, World, millis};
use crate::history::Event;
use crate::plan::Plan;
use crate::run::Ran;

/// The clients in their world. What belongs to a client has its number as its index.
pub(super) struct Simulation<'p> {
    pub(super) world: World<'p>,
    clients: Vec<Client>,
    pub(super) callers: Vec<Caller>,
    /// The last grant that each caller was told of.
    pub(super) tokens: Vec<Option<(u32, u64)>>,
    /// When each client's next timer is due.
    due: Vec<u64>,
    presence: Vec<Presence>,
    /// What waits for each client's pause to end.
    deferred: Vec<Vec<Happening>>,
    phase: Phase,
}

/// Whether a client makes steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Awake,
    PausedUntil(u64),
    Crashed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Callers come and faults strike, until then at the latest.
    Running {
        until: u64,
    },
    /// Faults are over and nobody comes any more: what is under way ends.
    Ending {
        until: u64,
    },
    /// So long that what is not renewed has lapsed.
    Lapsing {
        until: u64,
    },
    /// The clients close their sessions.
    Leaving {
        until: u64,
    },
    Over,
}

/// The shortest time that a claim or release gets, as in dlock.
const LEAST_ATTEMPT: Duration = Duration::from_millis(100);

impl<'p> Simulation<'p> {
    pub(super) fn new(plan: &'p Plan) -> Self {
        let config = &plan.config;
        let (ttl, clients) = (config.ttl(), usize::from(config.clients));
        let attempt = Lease::attempt(ttl).max(LEAST_ATTEMPT);
        let terms = Terms {
            key: Key::new("k").unwrap_or_else(|invalid| unreachable!("{invalid}")),
            ttl,
            lapses_within_ttls: 2,
            attempt,
            patience: ttl,
            // As in dlock for the default ttl, and in proportion for others.
            longest_wait: ttl * 5,
            watches: true,
        };
        // About half of what all rounds need one after the other: often, the last of them are under way when the faults end.
        let round = millis(config.hold_ms + 8 * config.latency_ms);
        let until = millis(2 * config.ttl_ms) + u64::from(config.clients) * u64::from(config.rounds) * round / 2;
        Self {
            world: World::new(plan, terms),
            clients: (0..config.clients).map(Client::new).collect(),
            callers: (0..clients).map(|_| Caller::new(config.rounds)).collect(),
            tokens: vec![None; clients],
            due: vec![NEVER; clients],
            presence: vec![Presence::Awake; clients],
            deferred: (0..clients).map(|_| Vec::new()).collect(),
            phase: Phase::Running { until },
        }
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Ran {
        for c in self.all() {
            self.plan_next(c);
        }
        while self.phase != Phase::Over {
            self.advance();
            self.turn();
        }
        let (struck, history) = self.world.into_record();
        Ran { struck, history }
    }

    fn all(&self) -> std::ops::Range<u8> {
        0..self.world.config.clients
    }

    pub(super) fn client(&self, c: u8) -> &Client {
        &self.clients[usize::from(c)]
    }

    fn is_crashed(&self, c: u8) -> bool {
        self.presence[usize::from(c)] == Presence::Crashed
    }

    /// Lets the next thing happen.
    fn advance(&mut self) {
        let until = match self.phase {
            Phase::Running { until } | Phase::Ending { until } | Phase::Lapsing { until } | Phase::Leaving { until } => until,
            Phase::Over => return,
        };
        let (scheduled, change) = (self.world.next(), self.world.next_change);
        let mut timer = (NEVER, 0);
        for (c, due) in self.due.iter().enumerate() {
            if *due < timer.0 {
                timer = (*due, c as u8);
            }
        }
        let next = scheduled.min(change).min(timer.0).min(until);
        self.world.now = self.world.now.max(next);
        if change == next {
            self.world.pass();
        } else if scheduled == next {
            if let Some(happening) = self.world.pop() {
                self.happen(happening);
            }
        } else if timer.0 == next {
            self.act(timer.1, |client, around| client.due(around));
        }
        self.check_beliefs();
    }

    /// Lets something happen now.
    pub(super) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives(message) => self.world.arrive(message),
            Happening::OutageEnds => self.world.end_outage(),
            Happening::Resumes { client } => self.resume(client),
            Happening::Writes { client, op, token } => self.written(client, op, token),
            Happening::Answers { client, call, answer } => {
                if self.world.reaches(client) {
                    self.answer(client, Happening::Answers { client, call, answer });
                }
            }
            Happening::Steps { client, .. } => self.answer(client, happening),
        }
    }

    /// Lets a client take something in, now or after its pause.
    fn answer(&mut self, c: u8, happening: Happening) {
        match self.presence[usize::from(c)] {
            Presence::Crashed => {}
            Presence::PausedUntil(_) => self.deferred[usize::from(c)].push(happening),
            Presence::Awake => match happening {
                Happening::Answers { call, answer, .. } if self.client(c).awaits(call) => {
                    self.world.tell(Some(c), Event::Answered { call });
                    self.act(c, |client, around| _ = client.hear(call, answer, around));
                }
                Happening::Steps { op, step, .. } => self.step(c, op, step),
                _ => {}
            },
        }
    }

    /// Lets a client make a step, and its caller go on from what it is told.
    pub(super) fn act(&mut self, c: u8, act: impl FnOnce(&mut Client, &mut Around<'_, 'p>)) {
        let client = &mut self.clients[usize::from(c)];
        act(client, &mut Around::new(&mut self.world, c));
        let next = client.next_moment();
        self.due[usize::from(c)] = self.world.clocks[usize::from(c)].truth(next).unwrap_or(NEVER);
        while let Some((c, news)) = self.world.news.pop() {
            if let News::Held { op, token } = news {
                self.tokens[usize::from(c)] = Some((op, token.get()));
                self.check_belief(c);
            }
            self.react(c, news);
        }
        self.pass_gate(c);
    }

    /// Where the key passed from one claim to another, whoever still believes to hold it is recorded.
    fn check_beliefs(&mut self) {
        if std::mem::take(&mut self.world.passed_on) {
            for c in self.all() {
                self.check_belief(c);
            }
        }
    }

    fn check_belief(&mut self, c: u8) {
        if self.presence[usize::from(c)] != Presence::Awake {
            return;
        }
        let now = self.world.clocks[usize::from(c)].at(self.world.now);
        let Some((claim, token)) = self.client(c).believed(now) else { return };
        if self.world.store.holder_of(&self.world.terms.key).is_none_or(|(_, holder, _)| holder != claim) {
            self.world.tell(Some(c), Event::StillBelieves { op: op_of(claim), token: token.get() });
        }
    }

    pub(super) fn pause(&mut self, c: u8, lasts: u32) {
        let until = self.world.now + millis(lasts);
        self.presence[usize::from(c)] = Presence::PausedUntil(until);
        self.due[usize::from(c)] = NEVER;
        self.world.tell(Some(c), Event::Paused { until: until / 1_000 });
        self.world.schedule(until, Happening::Resumes { client: c });
    }

    /// A paused client goes on: first of all its belief is over if it is.
    fn resume(&mut self, c: u8) {
        let Presence::PausedUntil(until) = self.presence[usize::from(c)] else { return };
        if self.world.now < until {
            return;
        }
        self.presence[usize::from(c)] = Presence::Awake;
        self.act(c, |client, around| client.look(around));
        self.check_belief(c);
        let mut deferred = std::mem::take(&mut self.deferred[usize::from(c)]);
        // The write that it was about to make comes before anything else; then answers or timers, whichever.
        if matches!(deferred.first(), Some(Happening::Steps { step: Step::WriteOut, .. })) {
            let write = deferred.remove(0);
            self.answer(c, write);
        }
        if self.world.config.draw(&[0x2E5, c.into(), self.world.now]) & 1 == 0 {
            self.act(c, |client, around| client.due(around));
        }
        for happening in deferred {
            self.answer(c, happening);
        }
        if self.presence[usize::from(c)] == Presence::Awake {
            self.act(c, |client, around| client.due(around));
        }
    }

    /// A client ends without giving anything back.
    pub(super) fn crash(&mut self, c: u8) {
        let at = usize::from(c);
        self.presence[at] = Presence::Crashed;
        self.clients[at] = Client::new(c);
        (self.callers[at], self.due[at]) = (Caller::default(), NEVER);
        self.deferred[at].clear();
        self.world.releasing[at] = None;
        self.world.forget(c);
        self.world.tell(Some(c), Event::Crashed);
    }

    /// Goes on to the next phase when the present one is over.
    fn turn(&mut self) {
        let now = self.world.now;
        match self.phase {
            Phase::Running { until } => {
                let done = |c: u8| self.callers[usize::from(c)].is_done(self.world.releasing[usize::from(c)].is_some());
                if now >= until || self.all().all(done) {
                    self.heal();
                }
            }
            Phase::Ending { until } => {
                let quiet = self.world.under_way == 0 && self.all().all(|c| self.client(c).is_quiet() && self.has_no_wish(c));
                if quiet {
                    let lapses = self.world.terms.ttl * self.world.config.lapses_after_percent / 100;
                    self.phase = Phase::Lapsing { until: now + lapses.as_nanos() as u64 + 1 };
                } else if now >= until {
                    self.leave_unanswered();
                }
            }
            Phase::Lapsing { until } if now >= until => self.leave(),
            Phase::Leaving { until } => {
                if self.clients.iter().all(Client::has_left) {
                    self.look_for_remains();
                    self.phase = Phase::Over;
                } else if now >= until {
                    self.leave_unanswered();
                }
            }
            Phase::Lapsing { .. } | Phase::Over => {}
        }
    }

    fn has_no_wish(&self, c: u8) -> bool {
        let caller = &self.callers[usize::from(c)];
        caller.wanted.is_none() && caller.holding.is_none() && self.world.releasing[usize::from(c)].is_none()
    }

    fn heal(&mut self) {
        self.world.heal();
        for c in self.all() {
            self.callers[usize::from(c)].rounds = 0;
            if let Presence::PausedUntil(until) = &mut self.presence[usize::from(c)] {
                *until = self.world.now;
                self.resume(c);
            }
        }
        self.check_beliefs();
        let config = self.world.config;
        let turn = millis(config.ttl_ms * 2 + config.hold_ms + config.lock_delay_ms) + self.longest_wait();
        self.phase = Phase::Ending { until: self.world.now + 10 * turn * u64::from(config.clients + 1) };
    }

    fn longest_wait(&self) -> u64 {
        self.world.terms.longest_wait.as_nanos() as u64
    }

    /// What is not renewed has lapsed: what is there is a session that a client keeps, with nothing in it.
    fn leave(&mut self) {
        for (_, _, claim) in self.world.store.claims() {
            let op = op_of(claim);
            self.world
                .tell(Some((op / 1_000) as u8), Event::Left { what: format!("a claim of acquisition {op} that nobody releases") });
        }
        for session in self.world.store.sessions() {
            if !self.clients.iter().any(|client| client.keeps(&session)) {
                self.world.tell(None, Event::Left { what: format!("session {session} that nobody keeps, renewed all the same") });
            }
        }
        self.phase = Phase::Leaving { until: self.world.now + millis(self.world.config.ttl_ms) * 10 };
        for c in self.all() {
            self.act(c, |client, around| client.leave(around));
        }
    }

    /// Every client has closed its sessions: nothing is there any more.
    fn look_for_remains(&mut self) {
        for session in self.world.store.sessions() {
            self.world.tell(None, Event::Left { what: format!("session {session} after its client has left") });
        }
    }

    /// Something that must end goes on and on.
    fn leave_unanswered(&mut self) {
        for c in self.all() {
            let client = self.client(c);
            let what = match self.phase {
                Phase::Ending { .. } if client.is_acquiring() => "an acquisition that is never answered",
                Phase::Ending { .. } if client.holds() => "a guard that is never given back",
                Phase::Ending { .. } if !client.is_quiet() => "a release that never ends",
                Phase::Ending { .. } if !self.has_no_wish(c) => "a caller that is told nothing",
                Phase::Leaving { .. } if !client.has_left() => "a session that is never closed",
                _ => continue,
            };
            if !self.is_crashed(c) {
                self.world.tell(Some(c), Event::Left { what: what.to_owned() });
            }
        }
        self.phase = Phase::Over;
    }
}
