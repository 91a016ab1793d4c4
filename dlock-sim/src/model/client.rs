//! A client: the real machines, driven as the keeper and the acquisitions of dlock drive them.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    Acquire, AcquireAction, AcquireEvent, AcquirePlan, AcquireStep, Chance, Claim, ClaimId, Cursor, ErrorKind, FencingToken,
    Health, Lease, LeaseAction, LeaseEvent, LeaseStep, Loss, Mode, Moment, RetryPolicy, SessionId, Standing, Undo, UndoEvent,
    UndoStep, Undone, Verdict, Woken,
};
use dlock_testkit::memory::{Guard, Reply, Request, Store};

use super::world::{Content, Message, World};
use super::{Bug, TTL, key};

/// One process with its sessions, and at most one acquisition or grant of the key at a time, as its gate allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    me: usize,
    /// It makes no step.
    pub paused: bool,
    /// How far its clock is behind.
    pub lag: Duration,
    sessions: Vec<Session>,
    acquiring: Option<Acquiring>,
    grant: Option<Grant>,
    claims: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    lease: Lease,
    until: Moment,
    call: Option<LeaseCall>,
    id: Option<SessionId>,
    retired: bool,
    doubted: bool,
    ended: bool,
    undoing: Vec<Undoing>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LeaseCall {
    action: LeaseAction,
    until: Moment,
    sent: Moment,
    call: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Undoing {
    claim: Arc<Claim>,
    machine: Undo,
    until: Moment,
    call: Option<u8>,
    /// Nobody else of this process passes the gate before it is done.
    gate: bool,
    unfenced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Acquiring {
    machine: Acquire,
    until: Moment,
    call: Option<u8>,
    waiting: Option<Cursor>,
    seat: Option<Seat>,
    /// A planted bug took an answer for proof that nothing is owed.
    forgot: bool,
    /// The answer to the claim under way accounts for every copy of it.
    fences: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seat {
    session: usize,
    claim: Arc<Claim>,
    /// A copy of the claim that was guarded by the key's absence was not answered (yet).
    unfenced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Grant {
    seat: Seat,
    token: FencingToken,
}

const ATTEMPT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_millis(250);

impl Client {
    pub(super) fn new(me: usize) -> Self {
        Self { me, paused: false, lag: Duration::ZERO, sessions: Vec::new(), acquiring: None, grant: None, claims: 0 }
    }

    /// Whether a new acquisition passes the gate.
    pub(super) fn is_idle(&self) -> bool {
        let gate = self.sessions.iter().flat_map(|session| &session.undoing).any(|undoing| undoing.gate);
        self.acquiring.is_none() && self.grant.is_none() && !gate
    }

    pub(super) fn is_acquiring(&self) -> bool {
        self.acquiring.is_some()
    }

    pub(super) fn holds(&self) -> bool {
        self.grant.is_some()
    }

    /// The token of the grant it has.
    pub fn token(&self) -> Option<FencingToken> {
        self.grant.as_ref().map(|grant| grant.token)
    }

    /// What a guard's check would say at this moment, whether or not the client is paused.
    pub fn believes(&self, now: Moment) -> bool {
        self.believed(now).is_some()
    }

    /// The claim that it believes to hold the key.
    pub fn believed(&self, now: Moment) -> Option<ClaimId> {
        let grant = self.grant.as_ref()?;
        let until = self.sessions[grant.seat.session].lease.believed_until()?;
        (self.clock(now) < until).then_some(grant.seat.claim.id)
    }

    /// Whether a claim at the store is one that this client knows of and will see to, or lets lapse with its session.
    pub fn answers_for(&self, session: &SessionId, claim: ClaimId) -> bool {
        let Some(known) = self.sessions.iter().find(|known| known.id.as_ref() == Some(session)) else {
            // Its opening was never answered, so nobody renews it.
            return true;
        };
        let acquiring = self.acquiring.as_ref().and_then(|acquiring| acquiring.seat.as_ref());
        let granted = self.grant.as_ref().map(|grant| &grant.seat);
        known.lease.believed_until().is_none()
            || known.retired
            || known.undoing.iter().any(|undoing| undoing.claim.id == claim)
            || acquiring.into_iter().chain(granted).any(|seat| seat.claim.id == claim)
    }

    /// Whether it lost a session to silence.
    pub fn lost_by_silence(&self) -> bool {
        self.sessions.iter().any(|session| session.lease.health() == Health::Over(Some(Loss::Expired)))
    }

    /// Whether it waits for something that nobody will ever do.
    pub fn is_stuck(&self) -> bool {
        let Some(acquiring) = &self.acquiring else { return false };
        let alive = self.sessions.iter().any(|session| !session.ended);
        acquiring.call.is_none() && acquiring.waiting.is_none() && acquiring.until == Moment::FAR_FUTURE && !alive
    }

    fn clock(&self, now: Moment) -> Moment {
        now.minus(self.lag)
    }

    /// When, in true time, its next timer is due.
    pub(super) fn next_moment(&self) -> Moment {
        let undoing = self.sessions.iter().flat_map(|session| &session.undoing).map(|undoing| undoing.until);
        let leases = self.sessions.iter().filter(|session| !session.ended).map(|session| session.until);
        let acquiring = self.acquiring.iter().map(|acquiring| acquiring.until);
        undoing.chain(leases).chain(acquiring).min().unwrap_or(Moment::FAR_FUTURE).plus(self.lag)
    }

    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.next_moment() <= now
    }

    pub(super) fn is_woken(&self, store: &Store) -> bool {
        self.woken(store).is_some()
    }

    fn woken(&self, store: &Store) -> Option<Woken> {
        let acquiring = self.acquiring.as_ref()?;
        let (cursor, seat) = (acquiring.waiting?, acquiring.seat.as_ref()?);
        store.woken(self.sessions[seat.session].id.as_ref()?, &seat.claim, cursor)
    }

    pub(super) fn want(&mut self, world: &mut World) {
        let plan = AcquirePlan {
            place: world.left.place,
            retry: RetryPolicy::fixed(Duration::from_millis(50)),
            deadline: None,
            attempt: ATTEMPT,
            longest_wait: Duration::from_secs(60),
        };
        let machine = Acquire::new(plan);
        self.acquiring = Some(Acquiring {
            machine,
            until: Moment::FAR_FUTURE,
            call: None,
            waiting: None,
            seat: None,
            forgot: false,
            fences: false,
        });
        self.acquire(AcquireEvent::Started, world);
    }

    pub(super) fn cancel(&mut self, world: &mut World) {
        self.acquire(AcquireEvent::Stopped, world);
    }

    pub(super) fn release(&mut self, world: &mut World) {
        let Some(Grant { seat, .. }) = self.grant.take() else { return };
        self.owe(&seat, true, world);
    }

    pub(super) fn wake(&mut self, world: &mut World) {
        let Some(Woken { cursor, hint }) = self.woken(&world.store) else { return };
        self.acquire(AcquireEvent::Woken { cursor, hint }, world);
    }

    /// Steps every machine whose time has come.
    pub(super) fn due(&mut self, world: &mut World) {
        let now = self.clock(world.now);
        for s in 0..self.sessions.len() {
            if !self.sessions[s].ended && self.sessions[s].until <= now {
                self.keep(s, LeaseEvent::Elapsed, world);
            }
            let due: Vec<_> = self.sessions[s].undoing.iter().filter(|undoing| undoing.until <= now).collect();
            for claim in due.iter().map(|undoing| undoing.claim.id).collect::<Vec<_>>() {
                self.undo(s, claim, UndoEvent::Elapsed, world);
            }
        }
        if self.acquiring.as_ref().is_some_and(|acquiring| acquiring.until <= now) {
            self.acquire(AcquireEvent::Elapsed, world);
        }
    }

    /// Takes in a reply; one to a call that was given up is ignored.
    pub(super) fn hear(&mut self, call: u8, reply: Reply, world: &mut World) {
        if self.acquiring.as_ref().is_some_and(|acquiring| acquiring.call == Some(call)) {
            if let Some(Acquiring { seat: Some(seat), fences: true, .. }) = &mut self.acquiring {
                seat.unfenced = false;
            }
            return self.hear_acquire(reply, world);
        }
        for s in 0..self.sessions.len() {
            if let Some(lease) = self.sessions[s].call.take_if(|lease| lease.call == call) {
                return self.hear_lease(s, &lease, reply, world);
            }
            let undoing = self.sessions[s].undoing.iter().find(|undoing| undoing.call == Some(call));
            if let (Some(undoing), Reply::Released(release)) = (undoing, &reply) {
                let id = undoing.claim.id;
                if undoing.unfenced && world.bug != Some(Bug::TrustsAbsence) {
                    self.sessions[s].retired = true;
                } else {
                    world.undone.insert(id);
                }
                return self.undo(s, id, UndoEvent::Answered(*release), world);
            }
        }
    }

    fn hear_acquire(&mut self, reply: Reply, world: &mut World) {
        match reply {
            Reply::Standing(standing) => {
                if standing == Standing::SessionGone
                    && let Some(seat) = self.acquiring.as_ref().and_then(|acquiring| acquiring.seat.clone())
                {
                    (self.sessions[seat.session].retired, self.sessions[seat.session].doubted) = (true, true);
                    self.acquire(AcquireEvent::Answered(standing), world);
                    self.keep(seat.session, LeaseEvent::Elapsed, world);
                } else {
                    self.acquire(AcquireEvent::Answered(standing), world);
                }
            }
            Reply::GuardFailed => self.acquire(AcquireEvent::Failed(ErrorKind::Transient), world),
            _ => {}
        }
    }

    fn hear_lease(&mut self, s: usize, lease: &LeaseCall, reply: Reply, world: &mut World) {
        // Whoever dates belief from the reply, or leaves out the margin, believes in a ttl that is longer.
        let extra = match world.bug {
            Some(Bug::DeadlineFromReply) => self.clock(world.now).saturating_since(lease.sent),
            Some(Bug::NoMargin) => Lease::margin(TTL),
            _ => Duration::ZERO,
        };
        match reply {
            Reply::Opened(id) => {
                self.sessions[s].id = Some(id);
                self.keep(s, LeaseEvent::Opened { ttl: TTL + extra }, world);
                if self.acquiring.as_ref().is_some_and(|acquiring| acquiring.seat.is_none()) {
                    self.take_seat(world);
                }
            }
            Reply::Renewed(ttl) => {
                self.keep(s, LeaseEvent::Renewed { ttl: ttl + extra }, world);
            }
            Reply::Gone => self.keep(s, LeaseEvent::Gone, world),
            Reply::Closed => self.keep(s, LeaseEvent::Closed, world),
            _ => {}
        }
    }

    fn send(&self, request: Request, world: &mut World) -> u8 {
        let leases = self.sessions.iter().filter_map(|session| session.call.as_ref().map(|lease| lease.call));
        let undoing = self.sessions.iter().flat_map(|session| &session.undoing).filter_map(|undoing| undoing.call);
        let acquiring = self.acquiring.iter().filter_map(|acquiring| acquiring.call);
        let under_way = world.messages.iter().filter(|message| message.client == self.me).map(|message| message.call);
        let taken: Vec<_> = leases.chain(undoing).chain(acquiring).chain(under_way).collect();
        // The smallest that is free, so that the same state is not told apart by its history.
        let call = (0..=u8::MAX).find(|call| !taken.contains(call)).unwrap_or_default();
        world.messages.push(Message { client: self.me, call, content: Content::Request(request), slow: false });
        call
    }

    /// Steps an acquisition until it waits for something, as `drive` and `perform` do.
    fn acquire(&mut self, event: AcquireEvent, world: &mut World) {
        let now = self.clock(world.now);
        let Some(mut acquiring) = self.acquiring.take() else { return };
        let busy = matches!(event, AcquireEvent::Answered(Standing::Busy { .. }));
        let stopped = event == AcquireEvent::Stopped;
        acquiring.forgot |= busy && world.bug == Some(Bug::BusyMeansNothingOwed);
        let (action, until) = match acquiring.machine.step(event, now, Chance::MIDDLE) {
            AcquireStep::Do { action, until } => (action, until),
            AcquireStep::Done(Verdict::Held { token }) => return self.granted(acquiring, token, world),
            AcquireStep::Done(_) => {
                let skipped = acquiring.forgot || world.bug == Some(Bug::CancelWithoutUndo) && stopped;
                if acquiring.machine.owes_release()
                    && !skipped
                    && let Some(seat) = acquiring.seat
                {
                    self.owe(&seat, true, world);
                }
                return;
            }
        };
        (acquiring.until, acquiring.call, acquiring.waiting) = (until, None, None);
        acquiring.forgot &= action != AcquireAction::Claim;
        match (action, acquiring.seat.clone()) {
            (AcquireAction::AwaitSession, seat) | (_, seat @ None) => {
                acquiring.seat = None;
                let owes = acquiring.machine.owes_release();
                self.acquiring = Some(acquiring);
                if let Some(seat) = seat
                    && owes
                {
                    self.owe(&seat, false, world);
                }
                self.take_seat(world);
            }
            (AcquireAction::Claim, Some(seat)) => {
                let session = self.id_of(&seat);
                let (claim, guard) = (Arc::clone(&seat.claim), world.store.guard(&key()));
                let before = seat.unfenced;
                acquiring.seat = Some(Seat { unfenced: before || guard == Guard::Index(0), ..seat });
                acquiring.fences = !before;
                acquiring.call = Some(self.send(Request::Claim { session, claim, place: world.left.place, guard }, world));
                self.acquiring = Some(acquiring);
            }
            (AcquireAction::Confirm { .. }, Some(seat)) => {
                let (session, claim) = (self.id_of(&seat), Arc::clone(&seat.claim));
                acquiring.call = Some(self.send(Request::Confirm { session, claim }, world));
                self.acquiring = Some(acquiring);
            }
            (AcquireAction::Wait { cursor }, Some(_)) => {
                acquiring.waiting = Some(cursor);
                self.acquiring = Some(acquiring);
            }
            (AcquireAction::Pause, Some(_)) => self.acquiring = Some(acquiring),
        }
    }

    fn id_of(&self, seat: &Seat) -> SessionId {
        self.sessions[seat.session].id.clone().unwrap_or_else(|| unreachable!("a seat is taken in an open session"))
    }

    /// Gets a session to claim with, and a fresh claim for it.
    fn take_seat(&mut self, world: &mut World) {
        let usable = |session: &Session| !session.retired && !session.ended && !matches!(session.lease.health(), Health::Over(_));
        let Some(s) = self.sessions.iter().position(usable) else {
            self.sessions.push(Session {
                lease: Lease::new(TTL, 1),
                until: Moment::FAR_FUTURE,
                call: None,
                id: None,
                retired: false,
                doubted: false,
                ended: false,
                undoing: Vec::new(),
            });
            return self.keep(self.sessions.len() - 1, LeaseEvent::Started, world);
        };
        if self.sessions[s].lease.believed_until().is_none() {
            return;
        }
        self.claims += 1;
        let claim = Arc::new(Claim {
            id: ClaimId::from_bits(self.me as u128 * 16 + u128::from(self.claims)),
            key: key(),
            mode: Mode::Exclusive,
            owner: "client".into(),
            acquired_at: "".into(),
            metadata: None,
        });
        if let Some(acquiring) = &mut self.acquiring {
            acquiring.seat = Some(Seat { session: s, claim, unfenced: false });
        }
        self.acquire(AcquireEvent::SessionReady, world);
    }

    /// Takes in a grant; one that came with a session that is not believed any more is undone, and another is tried.
    fn granted(&mut self, acquiring: Acquiring, token: FencingToken, world: &mut World) {
        let Some(seat) = acquiring.seat else { return };
        let until = self.sessions[seat.session].lease.believed_until();
        if until.is_some_and(|until| self.clock(world.now) < until) {
            self.grant = Some(Grant { seat, token });
        } else {
            self.owe(&seat, true, world);
        }
    }

    /// Steps a lease until it waits for something, as the keeper does.
    fn keep(&mut self, s: usize, mut event: LeaseEvent, world: &mut World) {
        let now = self.clock(world.now);
        loop {
            if event == LeaseEvent::Elapsed {
                event = self.ending(s).unwrap_or(event);
            }
            let (action, until) = match self.sessions[s].lease.step(event, now, Chance::MIDDLE) {
                LeaseStep::Do { action, until } => (action, until),
                LeaseStep::Done(_) => {
                    self.lose(s, world);
                    let session = &mut self.sessions[s];
                    (session.ended, session.call) = (true, None);
                    // What was still to be released is ended with it, or lapses with nobody renewing it.
                    session.undoing.clear();
                    break;
                }
            };
            self.sessions[s].until = until;
            self.start(s, action, until, world);
            if action == LeaseAction::Settle {
                self.lose(s, world);
                if self.sessions[s].undoing.is_empty() {
                    event = LeaseEvent::Settled;
                    continue;
                }
            }
            break;
        }
        let over = self.sessions[s].ended || matches!(self.sessions[s].lease.health(), Health::Over(_));
        if over && self.acquiring.as_ref().is_some_and(|acquiring| acquiring.seat.as_ref().is_some_and(|seat| seat.session == s)) {
            self.acquire(AcquireEvent::SessionLost, world);
        }
    }

    fn ending(&mut self, s: usize) -> Option<LeaseEvent> {
        let mut seats = self.acquiring.iter().filter_map(|acquiring| acquiring.seat.as_ref());
        let mut seats_and_grants = seats.by_ref().chain(self.grant.iter().map(|grant| &grant.seat));
        let used = seats_and_grants.any(|seat| seat.session == s);
        let session = &mut self.sessions[s];
        match session.retired {
            true if std::mem::take(&mut session.doubted) => Some(LeaseEvent::Disturbed),
            true if !used && session.undoing.is_empty() => Some(LeaseEvent::Left),
            _ => None,
        }
    }

    /// Starts the call of an action, unless it is the one under way; gives up any other.
    fn start(&mut self, s: usize, action: LeaseAction, until: Moment, world: &mut World) {
        let running = self.sessions[s].call.as_ref().map(|lease| (lease.action, lease.until));
        if running == Some((action, until)) {
            return;
        }
        self.sessions[s].call = None;
        let request = match (action, self.sessions[s].id.clone()) {
            (LeaseAction::Open, _) => Request::Open { id: SessionId::new(format!("{}.{s}.{until:?}", self.me)), ttl: TTL },
            (LeaseAction::Renew, Some(id)) => Request::Renew(id),
            (LeaseAction::Close, Some(id)) => Request::Close(id),
            _ => return,
        };
        let call = self.send(request, world);
        self.sessions[s].call = Some(LeaseCall { action, until, sent: self.clock(world.now), call });
    }

    /// Belief in a session has ended: the grant is lost, and its release owed.
    fn lose(&mut self, s: usize, world: &mut World) {
        if let Some(grant) = self.grant.take_if(|grant| grant.seat.session == s) {
            self.owe(&grant.seat, true, world);
        }
    }

    fn owe(&mut self, seat: &Seat, gate: bool, world: &mut World) {
        if self.sessions[seat.session].ended {
            return;
        }
        self.sessions[seat.session].undoing.push(Undoing {
            claim: Arc::clone(&seat.claim),
            machine: Undo::new(ATTEMPT, PATIENCE),
            until: Moment::FAR_FUTURE,
            call: None,
            gate,
            unfenced: seat.unfenced,
        });
        self.undo(seat.session, seat.claim.id, UndoEvent::Started, world);
    }

    fn undo(&mut self, s: usize, claim: ClaimId, event: UndoEvent, world: &mut World) {
        let now = self.clock(world.now);
        let Some(at) = self.sessions[s].undoing.iter().position(|undoing| undoing.claim.id == claim) else { return };
        let Some(session) = self.sessions[s].id.clone() else { return };
        let undoing = &mut self.sessions[s].undoing[at];
        match undoing.machine.step(event, now, Chance::MIDDLE) {
            UndoStep::Release { until } => {
                (undoing.until, undoing.call) = (until, None);
                let claim = Arc::clone(&undoing.claim);
                let call = self.send(Request::Release { session, claim }, world);
                self.sessions[s].undoing[at].call = Some(call);
            }
            UndoStep::Pause { until } => (undoing.until, undoing.call) = (until, None),
            UndoStep::Done(undone) => {
                self.sessions[s].undoing.remove(at);
                self.sessions[s].retired |= undone == Undone::GivenUp;
                if !self.sessions[s].ended {
                    let settling =
                        self.sessions[s].undoing.is_empty() && matches!(self.sessions[s].lease.health(), Health::Over(Some(_)));
                    self.keep(s, if settling { LeaseEvent::Settled } else { LeaseEvent::Elapsed }, world);
                }
            }
        }
    }
}
