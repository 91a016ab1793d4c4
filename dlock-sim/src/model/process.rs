//! One client of the model, and what is around it.

use std::time::Duration;

use dlock_core::{Chance, ClaimId, Moment, Woken};
use dlock_testkit::memory::{Guard, Store};

use super::world::{Content, Message, World};
use super::{Bug, TERMS};
use crate::machines::{CallId, Client, News, Question, Surroundings, Terms};

/// A client, and what time does to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// The client.
    pub client: Client,
    /// It makes no step.
    pub paused: bool,
    /// How far its clock is behind.
    pub lag: Duration,
}

impl Process {
    pub(super) fn new(me: usize) -> Self {
        Self { client: Client::new(me as u8), paused: false, lag: Duration::ZERO }
    }

    /// The claim that it believes to hold the key.
    pub fn believed(&self, now: Moment) -> Option<ClaimId> {
        self.client.believed(now.minus(self.lag)).map(|(claim, _)| claim)
    }

    /// What a guard's check would say at this moment, whether or not the client is paused.
    pub fn believes(&self, now: Moment) -> bool {
        self.believed(now).is_some()
    }

    /// When, in true time, its next timer is due.
    pub(super) fn next_moment(&self) -> Moment {
        self.client.next_moment().plus(self.lag)
    }

    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.next_moment() <= now
    }

    pub(super) fn woken(&self, store: &Store) -> Option<Woken> {
        let (session, claim, cursor) = self.client.waits_for()?;
        store.woken(session, claim, cursor)
    }
}

/// What the model is to one of its clients.
pub(super) struct Around<'a> {
    pub(super) world: &'a mut World,
    pub(super) me: usize,
}

impl Surroundings for Around<'_> {
    fn terms(&self) -> &Terms {
        &TERMS
    }

    fn now(&self) -> Moment {
        self.world.now.minus(self.world.clients[self.me].lag)
    }

    fn chance(&mut self) -> Chance {
        Chance::MIDDLE
    }

    fn guard(&self) -> Guard {
        self.world.store.guard(&TERMS.key)
    }

    /// Never: a queue only delays, and a message may be as late as it likes.
    fn queued_for(&mut self) -> Option<Duration> {
        None
    }

    fn answers_others(&mut self) -> bool {
        false
    }

    fn send(&mut self, taken: impl Iterator<Item = CallId>, question: Question) -> Option<CallId> {
        // A wait is looked at in the store itself, and the terms ask for no audits and watches.
        let Question::Request(request) = question else { return None };
        let under_way = self.world.messages.iter().filter(|message| message.client == self.me).map(|message| message.call);
        let taken: Vec<_> = taken.chain(under_way).collect();
        // The smallest that is free, so that the same state is not told apart by its history.
        let call = (0..=CallId::MAX).find(|call| !taken.contains(call))?;
        let content = Content::Request(request);
        self.world.messages.push(Message { client: self.me, call, content, slow: false });
        Some(call)
    }

    fn tell(&mut self, news: News) {
        if let News::Undone { claim, fenced: true, .. } = news {
            self.world.undone.insert(claim);
        }
    }

    fn bug(&self) -> Option<Bug> {
        self.world.bug
    }
}
