//! How a claim gets its ticket, how it stands in line, and how it comes to its key.

use dlock_core::{BackendError, Claim, Cursor, ErrorKind, FencingToken, Mode, Place, Room, SessionId, Standing};

use super::notes::Awaits;
use super::tickets::{FIRST, HOLDS, Seen, Ticket, WAITS, line, ticket, tombstone};
use super::{Copy, Fair};
use crate::backend::LONGEST_DELAY;
use crate::classify::{Asked, Needs, denied, excerpt};
use crate::guarded::{conflict, guard_op, without_index};
use crate::notes::Known;
use crate::wire::{Entry, LOCK_FLAGS, Op, TxnError, encode_value};

/// A claim of ours, and its ticket.
#[derive(Clone, Debug)]
pub(crate) struct Ours<'a> {
    pub(crate) session: &'a SessionId,
    pub(crate) claim: &'a Claim,
    pub(crate) ticket: String,
    pub(crate) tombstone: String,
}

impl<'a> Ours<'a> {
    pub(crate) fn new(session: &'a SessionId, claim: &'a Claim) -> Self {
        Self { session, claim, ticket: ticket(session, claim), tombstone: tombstone(session, claim) }
    }
}

impl Ours<'_> {
    /// The index of the key and the number of the grant, where the key is locked by this very claim.
    fn has(&self, key: Option<&Entry>) -> Option<(u64, FencingToken)> {
        let entry = key.filter(|entry| self.claim.mode == Mode::Exclusive && entry.is_lock())?;
        let ours = entry.holder_session() == Some(self.session.as_str()) && entry.claim() == Some(self.claim.id);
        if ours { Some((entry.modify_index, entry.token()?)) } else { None }
    }
}

/// What a claim would find that stood behind these.
enum Way {
    Free(Known),
    Taken(Awaits),
}

/// What asking for a ticket brought.
enum Placed {
    Seen(Seen),
    /// An earlier copy got it.
    Already,
    /// The claim was released before.
    Undone,
    SessionGone,
}

/// What asking for the lock itself brought.
enum Granted {
    Held(FencingToken),
    SessionGone,
    Delayed,
    /// Something changed: look.
    Refused,
}

impl Fair {
    pub(super) fn asked<'a>(what: &'static str, writes: bool, ours: &Ours<'a>) -> Asked<'a> {
        let key = ours.claim.key.as_str();
        Asked { what, writes, needs: if writes { Needs::LineWrite(key) } else { Needs::LineRead(key) } }
    }

    /// Gets the claim into line, or finds it there.
    pub(super) async fn enter(&self, ours: &Ours<'_>, place: Place) -> Result<Standing, BackendError> {
        match place {
            Place::Queue => self.queue(ours).await,
            Place::Try => self.attempt(ours).await,
        }
    }

    async fn queue(&self, ours: &Ours<'_>) -> Result<Standing, BackendError> {
        let seen = match self.place(ours).await? {
            Placed::Seen(seen) => seen,
            Placed::Already => self.look_as("claiming the key", &ours.claim.key).await.map_err(placed)?,
            Placed::Undone => return Ok(Standing::ClaimGone),
            Placed::SessionGone => return Ok(Standing::SessionGone),
        };
        self.stand(ours, seen).await.map_err(placed)
    }

    /// Looks, and enters if there is room; leaves nothing otherwise.
    async fn attempt(&self, ours: &Ours<'_>) -> Result<Standing, BackendError> {
        let seen = self.look_as("claiming the key", &ours.claim.key).await?;
        let standing = if seen.place(&ours.ticket).is_some() {
            self.stand(ours, seen).await.map_err(placed)?
        } else if let Way::Taken(_) = way(ours, &seen.line, seen.key.as_ref())? {
            return Ok(Standing::Busy { holder: seen.holder(), cursor: Cursor(seen.index()) });
        } else {
            self.queue(ours).await?
        };
        match standing {
            Standing::Waiting { holder, cursor, .. } => {
                self.withdraw(ours).await.map_err(placed)?;
                Ok(Standing::Busy { holder, cursor })
            }
            Standing::Delayed { .. } => {
                self.withdraw(ours).await.map_err(placed)?;
                Ok(standing)
            }
            _ => Ok(standing),
        }
    }

    /// Makes the claim's ticket, and shows the line with it.
    async fn place(&self, ours: &Ours<'_>) -> Result<Placed, BackendError> {
        let asked = Self::asked("claiming the key", true, ours);
        let value = encode_value(ours.claim.publication());
        let ops = [
            Op::check_not_exists(&ours.tombstone),
            Op::check_not_exists(&ours.ticket),
            Op::lock(&ours.ticket, ours.session, &value, WAITS),
        ];
        let mut copy = Copy::sent(self, ours);
        let answer = self.see(asked, &ours.claim.key, &ops).await;
        copy.answered = answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous);
        drop(copy);
        let errors = match answer? {
            Ok(seen) => {
                self.notes().placed(ours.claim.id);
                return Ok(Placed::Seen(seen));
            }
            Err(errors) => errors,
        };
        let at = |place: usize| errors.iter().any(|error| error.op_index == place);
        if says(&errors, "invalid session") {
            self.session_gone(ours.session);
            Ok(Placed::SessionGone)
        } else if let Some(error) = errors.iter().find(|error| error.says("missing session") || error.says("failed session lookup"))
        {
            let message = format!("claiming the key: Consul answered {}", excerpt(&error.what));
            Err(BackendError::new(ErrorKind::Invalid, message))
        } else if at(0) {
            Ok(Placed::Undone)
        } else if at(1) {
            Ok(Placed::Already)
        } else {
            Err(refused(asked, &errors))
        }
    }

    /// How the claim's ticket stands in what was seen; comes to the key where there is room.
    pub(super) async fn stand(&self, ours: &Ours<'_>, seen: Seen) -> Result<Standing, BackendError> {
        let mut seen = seen;
        for _ in 0..4 {
            if let Some((index, token)) = ours.has(seen.key.as_ref()) {
                // Whatever became of its ticket: the key is locked by this very claim.
                self.notes().locking(ours.claim.id);
                let token = self.shared.notes().token(ours.claim.id).unwrap_or(token);
                return Ok(self.held(ours, token, index));
            }
            let Some(place) = seen.place(&ours.ticket) else { return self.gone(ours).await };
            let own = &seen.line[place];
            let index = own.entry.modify_index;
            if own.holds() {
                let token = self.shared.notes().token(ours.claim.id).or_else(|| own.entry.token()).ok_or_else(without_index)?;
                return Ok(self.held(ours, token, index));
            }
            let guard = match way(ours, &seen.line[..place], seen.key.as_ref())? {
                Way::Free(guard) => guard,
                Way::Taken(awaits) => {
                    let others = u32::try_from(place).unwrap_or(u32::MAX).max(1);
                    let of_key = seen.key.as_ref().filter(|_| awaits == Awaits::Key).map(|entry| entry.modify_index);
                    // Whoever shares deletes its ticket alone: with that nobody gives the key back.
                    let gives_back = matches!(&seen.line[..place], [one] if one.mode == Mode::Exclusive);
                    self.notes().waits(ours.claim.id, own.awaited(), index, awaits, place > 0, gives_back);
                    let cursor = Cursor(of_key.unwrap_or_else(|| seen.index()));
                    return Ok(Standing::Waiting { cursor, ahead: Some(others), holder: seen.holder() });
                }
            };
            let undelayed = self.was_given_back(ours, seen.key.as_ref());
            if let Some(standing) = self.come_to(ours, index, guard, undelayed).await? {
                return Ok(standing);
            }
            seen = self.look_as("claiming the key", &ours.claim.key).await?;
        }
        Err(BackendError::new(ErrorKind::Transient, "claiming the key: it changed again and again"))
    }

    /// Whether the last who had the key is one that the claim waited for in line, and gave it back: it came to the key after every delay, and
    /// its death would have deleted the key.
    fn was_given_back(&self, ours: &Ours<'_>, key: Option<&Entry>) -> bool {
        let Some(last) = key.and_then(Entry::claim) else { return false };
        let notes = self.notes();
        let awaits = notes.claim(ours.claim.id).map(|note| &note.awaits);
        matches!(awaits, Some(Awaits::Tickets(awaited)) if awaited.iter().any(|awaited| awaited.is_of(last)))
    }

    /// Takes the lock for a claim with nobody in its way; `None` when something changed since that was seen. `undelayed` says that no holder
    /// of the key has died since it was last locked.
    pub(super) async fn come_to(
        &self,
        ours: &Ours<'_>,
        index: u64,
        guard: Known,
        undelayed: bool,
    ) -> Result<Option<Standing>, BackendError> {
        let granted = match ours.claim.mode {
            Mode::Exclusive => self.lock(ours, index, guard).await?,
            _ if undelayed => self.lock(ours, index, guard).await?,
            // Consul's delay after a holder's death is told to those alone who lock the same key.
            _ => match kept_from(&self.probe(ours, ours.claim.key.as_str()).await?) {
                None => self.lock(ours, index, guard).await?,
                Some(granted) => granted,
            },
        };
        Ok(match granted {
            Granted::Held(token) => Some(Standing::Held { token }),
            Granted::SessionGone => {
                self.session_gone(ours.session);
                Some(Standing::SessionGone)
            }
            Granted::Delayed => Some(Standing::Delayed { at_most: LONGEST_DELAY }),
            Granted::Refused => None,
        })
    }

    /// The lock itself: the key for an exclusive claim, the ticket for others. Conditional on the ticket, without which no copy has any
    /// effect, and on the key as it was seen free.
    async fn lock(&self, ours: &Ours<'_>, index: u64, guard: Known) -> Result<Granted, BackendError> {
        let Ours { session, claim, ticket, .. } = ours;
        let asked = Self::asked("claiming the key", true, ours);
        let (key, value) = (claim.key.as_str(), encode_value(claim.publication()));
        let (placed, lock) = match claim.mode {
            Mode::Exclusive => {
                let mut notes = self.notes();
                notes.locking(claim.id);
                // Tells the next in line, while this one holds, that nobody else is ahead of it: it need not look later.
                let stood_behind = notes.claim(claim.id).is_some_and(|note| note.stood_behind);
                let placed = if stood_behind { Op::cas(ticket, index, &value, FIRST) } else { Op::check_index(ticket, index) };
                (placed, Op::lock(key, session, &value, LOCK_FLAGS))
            }
            _ => (Op::check_index(ticket, index), Op::lock(ticket, session, &value, HOLDS)),
        };
        let errors = match self.shared.txn(asked, &[placed, guard_op(key, guard), lock]).await? {
            Ok(entries) => {
                let index = entries.last().map_or(0, |entry| entry.modify_index);
                let token = FencingToken::new(index).ok_or_else(without_index)?;
                if claim.mode == Mode::Exclusive {
                    self.learn(&claim.key, true);
                }
                self.held(ours, token, index);
                return Ok(Granted::Held(token));
            }
            Err(errors) => errors,
        };
        self.shared.notes().forget(&claim.key);
        Ok(kept_from(&errors).unwrap_or(Granted::Refused))
    }

    fn held(&self, ours: &Ours<'_>, token: FencingToken, index: u64) -> Standing {
        self.shared.granted(ours.session, ours.claim, token, index);
        self.notes().granted(ours.claim.id);
        Standing::Held { token }
    }

    /// Whose ticket is not there: the claim's, or the whole session's.
    async fn gone(&self, ours: &Ours<'_>) -> Result<Standing, BackendError> {
        let errors = self.probe(ours, &ours.ticket).await?;
        if says(&errors, "invalid session") {
            self.session_gone(ours.session);
            return Ok(Standing::SessionGone);
        }
        if says(&errors, "failed session check") {
            // Somebody released it by force, which leaves the key; a ticket is made anew only where there is none. A copy that comes late must
            // not take that away.
            let asked = Self::asked("claiming the key", true, ours);
            if let Ok(entries) = self.shared.txn(asked, &[Op::get(&ours.ticket)]).await?
                && let Some(left) = entries.first().filter(|left| left.holder_session().is_none())
            {
                let ops = [Op::check_index(&ours.ticket, left.modify_index), Op::delete(&ours.ticket)];
                self.shared.txn(asked, &ops).await?.map_err(|errors| refused(asked, &errors))?;
            }
        }
        Ok(Standing::ClaimGone)
    }

    /// What keeps the session from locking this, by a transaction that contradicts itself and so never does.
    async fn probe(&self, ours: &Ours<'_>, key: &str) -> Result<Vec<TxnError>, BackendError> {
        let asked = Self::asked("claiming the key", true, ours);
        let ops = [
            Op::check_not_exists(&ours.ticket),
            Op::check_session(&ours.ticket, ours.session),
            Op::lock(key, ours.session, "", LOCK_FLAGS),
        ];
        Ok(self.shared.txn(asked, &ops).await?.err().unwrap_or_default())
    }

    /// The key and its line as the leader has them.
    pub(super) async fn look_as(&self, what: &'static str, key: &dlock_core::Key) -> Result<Seen, BackendError> {
        let asked = Asked { what, writes: false, needs: Needs::LineRead(key.as_str()) };
        self.see(asked, key, &[]).await?.map_err(|errors| refused(asked, &errors))
    }

    /// The key and its line for who may only read: one after the other, which is enough to look at.
    async fn look_apart(&self, asked: Asked<'_>, key: &dlock_core::Key) -> Result<Result<Seen, Vec<TxnError>>, BackendError> {
        let own = self.shared.read(key).await?;
        self.learn(key, own.is_some());
        let line = self.shared.txn(asked, &[Op::get_tree(&line(key))]).await?;
        Ok(line.map(|entries| Seen::read(key, entries.into_iter().chain(own).collect())))
    }

    /// Does these operations, and shows the key and its line with what they did. Answers their errors alone: whether the key is there is
    /// guessed, and tried the other way when that was wrong.
    async fn see(
        &self,
        asked: Asked<'_>,
        key: &dlock_core::Key,
        before: &[Op<'_>],
    ) -> Result<Result<Seen, Vec<TxnError>>, BackendError> {
        let line = line(key);
        for _ in 0..4 {
            let there = self.is_there(key);
            let mut ops = before.to_vec();
            ops.push(if there { Op::get(key.as_str()) } else { Op::check_not_exists(key.as_str()) });
            ops.push(Op::get_tree(&line));
            let shown = match self.shared.txn(asked, &ops).await {
                // Who may only read is not told that a key is absent in a transaction.
                Err(error) if error.kind() == ErrorKind::Denied && !there && before.is_empty() => {
                    return self.look_apart(asked, key).await;
                }
                shown => shown?,
            };
            match shown {
                Ok(entries) if there && entries.iter().all(|entry| entry.key != key.as_str()) => {
                    // It is there, and left out of the answer.
                    return Err(denied(asked, "the key is not shown"));
                }
                Ok(entries) => {
                    self.learn(key, there);
                    return Ok(Ok(Seen::read(key, entries)));
                }
                Err(errors) => {
                    if errors.iter().any(|error| error.op_index == before.len()) {
                        self.learn(key, !there);
                    }
                    if errors.iter().any(|error| error.op_index != before.len()) {
                        return Ok(Err(errors));
                    }
                }
            }
        }
        Err(BackendError::new(ErrorKind::Transient, format!("{}: it was made and deleted again and again", asked.what)))
    }
}

/// What stands in the way of a claim behind these.
fn way(ours: &Ours<'_>, ahead: &[Ticket], key: Option<&Entry>) -> Result<Way, BackendError> {
    let claim = ours.claim;
    #[cfg(dlock_planted)]
    let ahead = if dlock_core::planted::Bug::TicketJumped.is_on() { &[] } else { ahead };
    if let Room::Wanting(tickets) = claim.mode.room(ahead.iter().rev().map(|ticket| (ticket, ticket.mode))) {
        if let Some(first) = ahead.first().filter(|first| claim.mode.contradicts(first.mode)) {
            return Err(BackendError::contradiction(claim, first.mode));
        }
        return Ok(Way::Taken(Awaits::Tickets(tickets.into_iter().map(Ticket::awaited).collect())));
    }
    let Some(entry) = key else { return Ok(Way::Free(Known::Absent)) };
    if !entry.is_lock() {
        return Err(conflict(&claim.key, entry.flags));
    }
    match entry.holder_session() {
        None => Ok(Way::Free(Known::At(entry.modify_index))),
        Some(_) => Ok(Way::Taken(Awaits::Key)),
    }
}

/// Why a session gets no lock whatever it is conditional on.
fn kept_from(errors: &[TxnError]) -> Option<Granted> {
    if says(errors, "invalid session") {
        Some(Granted::SessionGone)
    } else if says(errors, "due to lock delay") {
        Some(Granted::Delayed)
    } else {
        None
    }
}

pub(super) fn says(errors: &[TxnError], text: &str) -> bool {
    errors.iter().any(|error| error.says(text))
}

pub(super) fn refused(asked: Asked<'_>, errors: &[TxnError]) -> BackendError {
    let said = errors.first().map(|error| excerpt(&error.what)).unwrap_or_default();
    BackendError::new(ErrorKind::Ambiguous, format!("{}: Consul answered {said}", asked.what))
}

/// An error after the claim got its ticket: whatever it says of its own request, the claim has something.
fn placed(error: BackendError) -> BackendError {
    // What will never be granted is told as it is; its ticket is given up.
    if !error.kind().is_passing() {
        return error;
    }
    BackendError::new(ErrorKind::Ambiguous, error.message().to_owned()).caused_by(error)
}
