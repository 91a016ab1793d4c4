//! The way from the clients to the store and back, where calls are lost, delayed and repeated; and the waiting requests at its end.

use dlock_core::{Cause, Cursor, ErrorKind, Place, Standing};
use dlock_testkit::memory::{Guard, Reply, Request};

use super::queue::{Happening, Message};
use super::surroundings::{Answer, CallId, Question};
use super::world::{NEVER, Outage, World, millis};
use crate::history::{End, Event};
use crate::plan::{Fault, Site};

impl World<'_> {
    /// A client sends a call, and whatever strikes there strikes.
    pub(super) fn send(&mut self, client: u8, question: Question) -> CallId {
        let call = self.calls;
        self.calls += 1;
        let site = site_of(&question);
        let (slot, fault) = self.weather.visit(site, client);
        self.tell(Some(client), Event::Sent { call, slot });
        if let Some(fault) = fault {
            self.tell(Some(client), Event::Struck { slot, fault });
        }
        let latency = |leg| self.config.latency(&[site as u64, client.into(), slot.nth.into(), leg]).as_nanos() as u64;
        let (mut there, back) = (Some(latency(0)), latency(1));
        let mut message = Message { client, call, question, back: Some(back), refused: false, copy: false };
        match fault {
            Some(Fault::LoseRequest) => there = None,
            Some(Fault::LoseReply) => message.back = None,
            Some(Fault::DelayRequest(by)) => there = there.map(|there| there + millis(by)),
            Some(Fault::DelayReply(by)) => message.back = Some(back + millis(by)),
            Some(Fault::Repeat(later)) => {
                let copy = Message { back: None, copy: true, ..message.clone() };
                self.under_way += 1;
                self.schedule(self.now + latency(2) + millis(later), Happening::Arrives(copy));
            }
            Some(Fault::Refuse) => message.refused = true,
            Some(Fault::Partition(lasts)) => {
                let until = &mut self.partitioned[usize::from(client)];
                *until = (*until).max(self.now + millis(lasts));
            }
            Some(Fault::Outage(lasts)) => self.begin_outage(lasts, call),
            _ => {}
        }
        if self.is_partitioned(client) {
            there = None;
        }
        // Whoever asks again has given up its last waiting request.
        self.parked.retain(|parked| parked.client != client || !replaces(&message.question, &parked.question));
        if let Some(there) = there {
            self.under_way += 1;
            self.schedule(self.now + there, Happening::Arrives(message));
        }
        call
    }

    fn is_partitioned(&self, client: u8) -> bool {
        self.now < self.partitioned[usize::from(client)]
    }

    /// Whether an answer that arrives now reaches its client.
    pub(super) fn reaches(&mut self, client: u8) -> bool {
        self.under_way -= 1;
        !self.is_partitioned(client)
    }

    pub(super) fn answer(&mut self, client: u8, call: CallId, back: Option<u64>, answer: Answer) {
        if let Some(back) = back {
            self.under_way += 1;
            self.schedule(self.now + back, Happening::Answers { client, call, answer });
        }
    }

    /// A request arrives at the store.
    pub(super) fn arrive(&mut self, message: Message) {
        self.under_way -= 1;
        if self.is_partitioned(message.client) {
            return;
        }
        if let Some(Outage { until, frozen }) = self.outage {
            if frozen {
                self.under_way += 1;
                self.schedule(until, Happening::Arrives(message));
            }
            return;
        }
        self.pass();
        if message.copy && self.is_beyond_promise(&message.question) {
            return;
        }
        let Message { client, call, back, .. } = message;
        if message.refused {
            return self.answer(client, call, back, Answer::Failed(ErrorKind::Transient));
        }
        self.tell(Some(client), Event::Applied { call });
        match &message.question {
            Question::Request(request) => {
                let reply = self.store.apply(request, self.moment());
                if let Request::Claim { claim, place: Place::Try, .. } = request
                    && matches!(reply, Reply::Standing(Standing::Busy { .. }))
                {
                    self.busy_tries.push(claim.id);
                }
                self.answer(client, call, back, Answer::Reply(reply));
                match request {
                    Request::Open { .. } | Request::Renew(_) => self.look_ahead(),
                    Request::Amend { .. } => {}
                    Request::Close(_)
                    | Request::Confirm { .. }
                    | Request::Claim { .. }
                    | Request::ClaimAll { .. }
                    | Request::Release { .. } => {
                        self.changed(End::GivenBack);
                    }
                }
            }
            Question::Audit { session, claim } => {
                let held = self.store.holder_of(&claim.key).is_some_and(|(holder, id, _)| holder == session && id == claim.id);
                let cause = if self.store.exists(&claim.key) { Cause::TakenOver } else { Cause::KeyDeleted };
                self.answer(client, call, back, Answer::Audited((!held).then_some(cause)));
            }
            waiting => match self.look(waiting) {
                Some(answer) => self.answer(client, call, back, answer),
                None => self.parked.push(message),
            },
        }
    }

    /// Whether a copy that its sender knows nothing of is one against which nobody promises anything.
    ///
    /// A store cannot tell a copy of a try that it answered "busy" from the try being asked again, and nothing is released after that answer.
    /// And a claim that was guarded by nothing but the key's absence can be fenced by no release once an operator deletes the key.
    fn is_beyond_promise(&self, question: &Question) -> bool {
        match question {
            Question::Request(Request::Claim { guard: Guard::Index(0), .. }) => self.deleted,
            Question::Request(Request::Claim { claim, guard: Guard::Tombstone, .. }) => self.busy_tries.contains(&claim.id),
            _ => false,
        }
    }

    /// Whether a waiting request is answered by the store as it is.
    pub(super) fn look(&self, question: &Question) -> Option<Answer> {
        match question {
            Question::Wait { session, claim, cursor } => self.store.woken(session, claim, *cursor).map(Answer::Woken),
            Question::Disturbed { session, granted: None, .. } => {
                (!self.store.is_alive(session)).then_some(Answer::Disturbed(Cursor(0)))
            }
            Question::Disturbed { granted: Some((claim, token)), cursor, .. } => {
                let index = self.store.index(&claim.key);
                let mine = self.store.holder_of(&claim.key).is_some_and(|(_, id, _)| id == claim.id);
                let seen = cursor.map_or(token.get(), |cursor| cursor.0);
                (!mine && index > seen).then_some(Answer::Disturbed(Cursor(index)))
            }
            Question::Request(_) | Question::Audit { .. } => None,
        }
    }

    fn begin_outage(&mut self, lasts: u32, call: CallId) {
        let ends = self.now + millis(lasts);
        let frozen = self.config.draw(&[0x0C7A, call.into()]) & 1 == 0;
        let outage = self.outage.get_or_insert(Outage { until: ends, frozen });
        outage.until = outage.until.max(ends);
        self.next_change = NEVER;
        if !outage.frozen {
            for Message { client, call, back, .. } in std::mem::take(&mut self.parked) {
                self.answer(client, call, back, Answer::Failed(ErrorKind::Transient));
            }
        }
        self.schedule(ends, Happening::OutageEnds);
    }

    /// The store answers again, unless another outage has begun meanwhile.
    pub(super) fn end_outage(&mut self) {
        if self.outage.as_ref().is_some_and(|outage| outage.until <= self.now) {
            self.outage = None;
            self.store.resume(self.moment());
            self.changed(End::Lapsed);
        }
    }
}

fn site_of(question: &Question) -> Site {
    match question {
        Question::Request(Request::Open { .. }) => Site::Open,
        Question::Request(Request::Renew(_)) => Site::Renew,
        Question::Request(Request::Close(_)) => Site::Close,
        Question::Request(Request::Claim { .. } | Request::ClaimAll { .. }) => Site::Claim,
        Question::Request(Request::Confirm { .. }) => Site::Confirm,
        Question::Request(Request::Release { .. } | Request::Amend { .. }) => Site::Release,
        Question::Wait { .. } => Site::Wait,
        Question::Audit { .. } => Site::Audit,
        Question::Disturbed { .. } => Site::Disturbed,
    }
}

/// Whether a client that asks this has given up a waiting request of its own.
fn replaces(asked: &Question, parked: &Question) -> bool {
    match (asked, parked) {
        (Question::Wait { .. }, Question::Wait { .. }) => true,
        (Question::Disturbed { session, granted, .. }, Question::Disturbed { session: other, granted: before, .. }) => {
            session == other && granted.is_some() == before.is_some()
        }
        _ => false,
    }
}
