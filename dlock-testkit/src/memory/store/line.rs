//! What stands under a key: those who hold it and those who wait, in one line.

use std::sync::Arc;

use dlock_core::{Claim, ClaimId, Cursor, FencingToken, Holder, Metadata, Mode, Published, Room, SessionId, Standing};

use crate::memory::request::GrantRecord;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct KeyState {
    /// Moves with every change of the key, never back.
    pub(super) index: u64,
    /// The key exists at the store; in the slot profile it stays when it is released.
    pub(super) exists: bool,
    /// First come first; a claim may hold when those ahead of it leave room for it.
    pub(super) line: Vec<Entry>,
    /// How often it was locked since it was created.
    #[cfg(dlock_planted)]
    pub(super) lock_index: u64,
    pub(super) foreign: Option<Vec<u8>>,
    /// Every grant so far, in order; for checkers.
    pub(super) grants: Vec<GrantRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) session: SessionId,
    pub(super) claim: Arc<Claim>,
    /// Of its grant, or of its place where that is granted by itself.
    pub(super) token: FencingToken,
    /// What the holder published since, in place of what its claim says.
    pub(super) amended: Option<Metadata>,
    /// How often.
    pub(super) amendments: u32,
    pub(super) granted: bool,
}

impl KeyState {
    pub(super) fn place(&self, session: &SessionId, claim: ClaimId) -> Option<usize> {
        // Whoever asks has most often just come, or is about to hold.
        let last = self.line.len().checked_sub(1)?;
        let from_both_ends = (0..=last / 2).flat_map(|n| [n, last - n]);
        from_both_ends.into_iter().find(|place| self.line[*place].is(session, claim))
    }

    /// Whether the first `ahead` in line leave room for a claim of this mode.
    pub(super) fn has_room(&self, mode: Mode, ahead: usize) -> bool {
        let ahead = self.line[..ahead].iter().rev().map(|entry| ((), entry.claim.mode));
        mode.room(ahead) == Room::Enough
    }

    /// Whether those ahead of this place leave room for it.
    pub(super) fn has_room_at(&self, place: usize) -> bool {
        self.has_room(self.line[place].claim.mode, place)
    }

    pub(super) fn holders(&self) -> impl Iterator<Item = &Entry> {
        self.line.iter().filter(|entry| entry.granted)
    }

    pub(super) fn holder(&self) -> Option<Holder> {
        self.holders().next().map(Entry::holder)
    }

    /// Grants the key to everybody with room for them, first come first.
    pub(super) fn grant(&mut self) {
        let holders = Mode::holders(self.line.iter().map(|entry| entry.claim.mode));
        let new = self.line[..holders].iter_mut().filter(|entry| !entry.granted);
        self.grants.extend(new.map(Entry::grant));
    }

    pub(super) fn busy(&self) -> Standing {
        Standing::Busy { holder: self.holder(), cursor: Cursor(self.index) }
    }
}

impl Entry {
    pub(super) fn is(&self, session: &SessionId, claim: ClaimId) -> bool {
        self.claim.id == claim && self.session == *session
    }

    pub(super) fn grant(&mut self) -> GrantRecord {
        self.granted = true;
        GrantRecord { token: self.token, claim: self.claim.id, session: self.session.clone() }
    }

    pub(super) fn holder(&self) -> Holder {
        let published = Published::Metadata(self.amended.clone().unwrap_or_else(|| self.claim.published()));
        let mut holder = Holder::new(published);
        holder.session = Some(self.session.clone());
        holder.token = Some(self.token);
        holder
    }
}
