//! The state of a walk, and what can happen in it.

use std::collections::BTreeSet;
use std::time::Duration;

use dlock_core::{ClaimId, FencingToken, Moment, RetryPolicy};
use dlock_testkit::memory::{Reply, Request, Store};

use super::process::{Around, Process};
use super::{Bounds, Bug, DRIFT, TERMS};
use crate::machines::{Answer, CallId, Client, Want};

/// Everything there is: the store, the clients, what is under way between them, and the protected resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// True time.
    pub now: Moment,
    /// The store.
    pub store: Store,
    /// Its clients.
    pub clients: Vec<Process>,
    /// What is under way.
    pub messages: Vec<Message>,
    /// Tokens that go with writes under way.
    pub writes: Vec<FencingToken>,
    /// The highest token that the resource has accepted.
    pub accepted: Option<FencingToken>,
    /// The resource accepted a write that was older than one before.
    pub overwritten: bool,
    /// The resource refused a write of the very claim that holds the key.
    pub refused_holder: bool,
    /// Claims whose release the store has answered.
    pub undone: BTreeSet<ClaimId>,
    /// An operator has interfered.
    pub interfered: bool,
    /// What may still happen.
    pub left: Bounds,
    ends: Moment,
    pub(super) bug: Option<Bug>,
}

/// A request or a reply under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Whose.
    pub client: usize,
    /// Which call of that client; never that of two calls at once.
    pub call: CallId,
    /// What.
    pub content: Content,
    /// It may take any time.
    pub slow: bool,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is what its name says
pub enum Content {
    Request(Request),
    Reply(Reply),
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is what its name says
pub enum Operator {
    EndsSession,
    DeletesKey,
    ReleasesByForce,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A client wants the lock.
    Want(usize),
    /// A client does not want it any more.
    Cancel(usize),
    /// A client gives the lock back.
    Release(usize),
    /// A client checks that it holds the lock, and writes.
    Write(usize),
    /// A write arrives at the resource.
    Written(usize),
    /// A message arrives; the reply to a request is heard at once.
    Arrive(usize),
    /// A request arrives, and its reply will never.
    ArriveUnheard(usize),
    /// A request arrives, and its reply may take any time.
    ArriveAnsweredSlowly(usize),
    /// A request arrives, and a copy of it may do so at any time.
    ArriveAndRepeat(usize),
    /// A message is lost.
    Lose(usize),
    /// A message may take any time.
    Slow(usize),
    /// A client's wait returns.
    Wake(usize),
    /// A client does what its timers say.
    Due(usize),
    /// A client stops between two steps.
    Pause(usize),
    /// It goes on.
    Resume(usize),
    /// A client's clock falls behind.
    Drift(usize),
    /// An operator interferes.
    Operator(Operator),
    /// Time passes until something is due.
    Pass,
}

impl World {
    pub(super) fn new(store: Store, bounds: Bounds, bug: Option<Bug>) -> Self {
        let now = Moment::from_origin(Duration::from_secs(10));
        Self {
            now,
            store,
            clients: (0..bounds.wants.len()).map(Process::new).collect(),
            messages: Vec::new(),
            writes: Vec::new(),
            accepted: None,
            overwritten: false,
            refused_holder: false,
            undone: BTreeSet::new(),
            interfered: false,
            left: bounds,
            ends: now.plus(bounds.horizon),
            bug,
        }
    }

    /// Everything that can happen now.
    pub(super) fn events(&self, events: &mut Vec<Event>) {
        let left = &self.left;
        for (c, process) in self.clients.iter().enumerate() {
            let client = &process.client;
            if process.paused {
                events.push(Event::Resume(c));
                continue;
            }
            if client.is_idle() && left.wants[c] > 0 {
                events.push(Event::Want(c));
            }
            if client.is_acquiring() && left.cancels > 0 {
                events.push(Event::Cancel(c));
            }
            if client.holds() {
                events.push(Event::Release(c));
                if left.writes > 0 && process.believes(self.now) {
                    events.push(Event::Write(c));
                }
            }
            if process.woken(&self.store).is_some() {
                events.push(Event::Wake(c));
            }
            if process.is_due(self.now) {
                events.push(Event::Due(c));
            }
            if left.pauses > 0 && (client.holds() || client.is_acquiring()) {
                events.push(Event::Pause(c));
            }
            if left.drifts > 0 && client.holds() {
                events.push(Event::Drift(c));
            }
        }
        for (m, message) in self.messages.iter().enumerate() {
            let request = matches!(message.content, Content::Request(_));
            if request || !self.clients[message.client].paused {
                events.push(Event::Arrive(m));
            }
            if left.lost > 0 {
                events.push(Event::Lose(m));
            }
            if left.slow > 0 && !message.slow {
                events.push(Event::Slow(m));
            }
            if request && left.lost > 0 {
                events.push(Event::ArriveUnheard(m));
            }
            if request && left.slow > 0 && !self.clients[message.client].paused {
                events.push(Event::ArriveAnsweredSlowly(m));
            }
            if request && left.repeated > 0 {
                events.push(Event::ArriveAndRepeat(m));
            }
        }
        events.extend((0..self.writes.len()).map(Event::Written));
        if left.interventions > 0 && self.store.holder_of(&TERMS.key).is_some() {
            events.extend([Operator::EndsSession, Operator::DeletesKey, Operator::ReleasesByForce].map(Event::Operator));
        }
        if self.next_moment().is_some() {
            events.push(Event::Pass);
        }
    }

    /// When time goes on to, unless something prompt is still to happen or the walk is over.
    fn next_moment(&self) -> Option<Moment> {
        let prompt = |message: &Message| {
            let reply = matches!(message.content, Content::Reply(_));
            !(message.slow || reply && self.clients[message.client].paused)
        };
        if self.messages.iter().any(prompt) {
            return None;
        }
        let awake = || self.clients.iter().filter(|process| !process.paused);
        if awake().any(|process| process.is_due(self.now) || process.woken(&self.store).is_some()) {
            return None;
        }
        let next = awake().map(Process::next_moment).chain(self.store.next_change()).min()?;
        (next > self.now && next <= self.ends).then_some(next)
    }

    /// Lets one thing happen.
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Want(c) => {
                self.left.wants[c] -= 1;
                let retry = RetryPolicy::fixed(Duration::from_millis(50));
                let want = Want { op: 0, place: self.left.place, retry, deadline: None };
                self.act(c, |client, around| client.want(want, around));
            }
            Event::Cancel(c) => {
                self.left.cancels -= 1;
                self.act(c, |client, around| client.cancel(around));
            }
            Event::Release(c) => self.act(c, |client, around| client.release(around)),
            Event::Write(c) => {
                self.left.writes -= 1;
                self.writes.extend(self.clients[c].client.granted().map(|(_, token)| token));
            }
            Event::Written(w) => {
                let token = self.writes.remove(w);
                self.write(token);
            }
            Event::Arrive(m) => {
                let message = self.messages.remove(m);
                match message.content {
                    Content::Request(request) => {
                        let reply = self.apply(&request);
                        self.answer(message.client, message.call, reply);
                    }
                    Content::Reply(reply) => self.hear(message.client, message.call, reply),
                }
            }
            Event::ArriveUnheard(m) => {
                self.left.lost -= 1;
                self.arrive(m);
            }
            Event::ArriveAnsweredSlowly(m) => {
                self.left.slow -= 1;
                let (client, call, reply) = self.arrive(m);
                self.messages.push(Message { client, call, content: Content::Reply(reply), slow: true });
            }
            Event::ArriveAndRepeat(m) => {
                self.left.repeated -= 1;
                let copy = Message { slow: true, ..self.messages[m].clone() };
                let (client, call, reply) = self.arrive(m);
                self.messages.push(copy);
                self.answer(client, call, reply);
            }
            Event::Lose(m) => {
                self.left.lost -= 1;
                self.messages.remove(m);
            }
            Event::Slow(m) => {
                self.left.slow -= 1;
                self.messages[m].slow = true;
            }
            Event::Wake(c) => {
                if let Some(woken) = self.clients[c].woken(&self.store) {
                    self.act(c, |client, around| client.wake(woken, around));
                }
            }
            Event::Due(c) => self.act(c, |client, around| client.due(around)),
            Event::Pause(c) => {
                self.left.pauses -= 1;
                self.clients[c].paused = true;
            }
            Event::Resume(c) => self.clients[c].paused = false,
            Event::Drift(c) => {
                self.left.drifts -= 1;
                self.clients[c].lag += DRIFT;
            }
            Event::Operator(operator) => {
                self.left.interventions -= 1;
                self.interfere(operator);
            }
            Event::Pass => {
                if let Some(next) = self.next_moment() {
                    self.now = next;
                    self.store.pass(next);
                }
            }
        }
    }

    fn act(&mut self, c: usize, act: impl FnOnce(&mut Client, &mut Around<'_>)) {
        let mut client = std::mem::replace(&mut self.clients[c].client, Client::new(c as u8));
        act(&mut client, &mut Around { world: self, me: c });
        self.clients[c].client = client;
    }

    fn hear(&mut self, c: usize, call: CallId, reply: Reply) {
        self.act(c, |client, around| _ = client.hear(call, Answer::Reply(reply), around));
    }

    /// Applies a request that arrives; its client, its call and the reply.
    fn arrive(&mut self, m: usize) -> (usize, CallId, Reply) {
        let Message { client, call, content, .. } = self.messages.remove(m);
        match content {
            Content::Request(request) => (client, call, self.apply(&request)),
            Content::Reply(reply) => (client, call, reply),
        }
    }

    /// The reply is heard at once, unless the client is paused.
    fn answer(&mut self, client: usize, call: CallId, reply: Reply) {
        if self.clients[client].paused {
            self.messages.push(Message { client, call, content: Content::Reply(reply), slow: false });
        } else {
            self.hear(client, call, reply);
        }
    }

    fn apply(&mut self, request: &Request) -> Reply {
        if let Request::Release { session, claim } = request {
            let holder = self.store.holder_of(&claim.key).map(|(session, claim, _)| (session.clone(), claim));
            match (self.bug, holder) {
                (Some(Bug::ReleaseBySession), Some((holder, other))) if holder == *session && other != claim.id => {
                    self.store.evict(&claim.key);
                    return Reply::Released(dlock_core::Release::Released);
                }
                (Some(Bug::UnfencedRelease), _) if !self.store.claims().iter().any(|(_, _, id)| *id == claim.id) => {
                    return Reply::Released(dlock_core::Release::NotHeld);
                }
                _ => {}
            }
        }
        self.store.apply(request, self.now)
    }

    fn write(&mut self, token: FencingToken) {
        let stale = self.accepted.is_some_and(|accepted| token < accepted);
        if !stale || self.bug == Some(Bug::NoFence) {
            self.overwritten |= stale;
            self.accepted = Some(token);
        } else {
            self.refused_holder |= self.store.holder_of(&TERMS.key).is_some_and(|(_, _, holding)| holding == token);
        }
    }

    fn interfere(&mut self, operator: Operator) {
        self.interfered = true;
        let key = &TERMS.key;
        let holder = self.store.holder_of(key).map(|(session, ..)| session.clone());
        match (operator, holder) {
            (Operator::DeletesKey, _) => self.store.delete(key),
            (Operator::ReleasesByForce, _) => _ = self.store.evict(key),
            (Operator::EndsSession, Some(session)) => self.store.end_session(&session, self.now),
            (Operator::EndsSession, None) => {}
        }
    }
}
