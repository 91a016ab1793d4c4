//! Waiting in line: for one's predecessor alone, and, once that takes long, for the end of one's own ticket.

use std::time::Duration;

use dlock_core::{BackendError, Claim, Cursor, Hint, Key, Mode, Woken};
use futures_util::future::select_all;
use tokio::time::sleep_until;

use super::Fair;
use super::notes::{Awaited, Awaits, ClaimNote};
use super::tickets::{FIRST, line};
use crate::api::Shown;
use crate::notes::Known;
use crate::waits::Watched;

/// Who stands in line for less does not watch its own ticket: it would cost a request, whose place stays taken beyond its turn.
const SETTLED_AFTER: Duration = Duration::from_millis(250);

impl Fair {
    pub(crate) async fn wait(&self, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        let note = self.notes().claim(claim.id).cloned();
        let Some((note, own)) = note.and_then(|note| Some((note.clone(), note.own?))) else {
            // Asking anew finds out what we do not know.
            return Ok(Woken { cursor, hint: Hint::MaybeFree });
        };
        let since = Cursor(cursor.0.max(note.index));
        // The key may have been locked unheard, which outlives the ticket: asking finds out.
        let left = if note.may_lock { Hint::MaybeFree } else { Hint::ClaimGone };
        match &note.awaits {
            Awaits::Nothing => Ok(Woken { cursor, hint: Hint::MaybeFree }),
            Awaits::Key => tokio::select! {
                biased;
                woken = self.key_changed(&claim.key, cursor) => woken,
                woken = self.place_gone(&own, &note, since, left) => woken,
            },
            Awaits::Tickets(awaited) => match awaited.as_slice() {
                [before] => tokio::select! {
                    biased;
                    woken = self.predecessor_gone(claim, before, since) => woken,
                    woken = self.place_gone(&own, &note, since, left) => woken,
                },
                _ => self.one_gone(&claim.key, awaited, &own, since).await,
            },
        }
    }

    /// What becomes of the key of somebody without a ticket.
    async fn key_changed(&self, key: &Key, cursor: Cursor) -> Result<Woken, BackendError> {
        let shared = &self.shared;
        let (entry, index) = shared.watches.wait(&shared.api, key.as_str(), cursor.0).await?;
        let hint = match entry {
            Some(entry) if entry.holder_session().is_some() => Hint::StillHeld { holder: Some(entry.holder()) },
            Some(entry) if entry.is_lock() => {
                // The claim that hears of it is first in line: it asks for the key as it is now.
                shared.notes().learn(key, Known::At(entry.modify_index));
                Hint::MaybeFree
            }
            entry => {
                shared.notes().forget(key);
                self.learn(key, entry.is_some());
                Hint::MaybeFree
            }
        };
        // An index that went back says nothing of what came in between: look anew.
        Ok(Woken { cursor: Cursor(if index < cursor.0 { 0 } else { index }), hint })
    }

    async fn predecessor_gone(&self, claim: &Claim, before: &Awaited, cursor: Cursor) -> Result<Woken, BackendError> {
        #[cfg(dlock_planted)]
        if dlock_core::planted::Bug::PredecessorUnheard.is_on() {
            return std::future::pending().await;
        }
        let behind = (claim.mode == Mode::Exclusive).then_some(claim);
        let (woken, left_at) = self.left(before, behind, cursor, Hint::MaybeFree).await?;
        if let (Some(claim), Some(index)) = (behind, left_at) {
            self.notes().left_before(claim.id, index);
        }
        Ok(woken)
    }

    /// Returns when the claim's own ticket is not its session's any more, and not before it has settled: what happened earlier is told then.
    async fn place_gone(&self, own: &Awaited, note: &ClaimNote, cursor: Cursor, hint: Hint) -> Result<Woken, BackendError> {
        sleep_until(note.began + SETTLED_AFTER).await;
        // As of when it was seen: what is known of the key may be later than what became of the ticket.
        let Woken { hint, .. } = self.ticket_gone(own, Cursor(note.index), hint).await?;
        Ok(Woken { cursor, hint })
    }

    /// Returns when the ticket is not its session's any more.
    async fn ticket_gone(&self, awaited: &Awaited, cursor: Cursor, hint: Hint) -> Result<Woken, BackendError> {
        self.left(awaited, None, cursor, hint).await.map(|(woken, _)| woken)
    }

    /// The same, and for the claim that stands right behind the index at which it was deleted, if that is known. Meanwhile it is noted for that
    /// claim whether the ticket is first in line.
    async fn left(
        &self,
        awaited: &Awaited,
        behind: Option<&Claim>,
        cursor: Cursor,
        hint: Hint,
    ) -> Result<(Woken, Option<u64>), BackendError> {
        let shared = &self.shared;
        let mut since = cursor.0;
        // Asked for as all keys whose names begin so, of which there is no other: for these Consul tells the index of the last deletion, but
        // for one that is gone that of whatever was written last.
        let mut watching = shared.watches.waits.watching(&shared.api, Watched::Below(awaited.ticket.clone()));
        loop {
            let told = match behind {
                Some(_) => watching.news(since).await,
                None => None,
            };
            let dates_the_end = told.is_some();
            let (entry, index) = match told {
                Some(told) => {
                    let (entries, index) = told?;
                    (entries.into_iter().find(|entry| entry.key == awaited.ticket), index)
                }
                None => shared.watches.wait(&shared.api, &awaited.ticket, since).await?,
            };
            let Some(entry) = entry else {
                return Ok((Woken { cursor, hint }, (dates_the_end && index > since).then_some(index)));
            };
            if !awaited.is(&entry) {
                return Ok((Woken { cursor, hint }, None));
            }
            if let Some(claim) = behind {
                self.notes().before(claim.id, awaited, entry.flags == FIRST);
            }
            // An index that says nothing cannot be waited on.
            if index == 0 {
                return Ok((Woken { cursor, hint: Hint::StillHeld { holder: None } }, None));
            }
            if index == since {
                // Nothing happened for as long as a wait lasts: others may have their turn.
                watching.leave_place();
            }
            since = index;
        }
    }

    /// Returns when one of these tickets is gone, or our own.
    async fn one_gone(&self, key: &Key, awaited: &[Awaited], own: &Awaited, cursor: Cursor) -> Result<Woken, BackendError> {
        let shared = &self.shared;
        let mut watching = shared.watches.waits.watching(&shared.api, Watched::Below(line(key)));
        let mut since = cursor.0;
        loop {
            let Some(told) = watching.news(since).await else {
                // All of them: whichever goes makes room.
                let nearest = awaited.iter().map(|ticket| (ticket, Hint::MaybeFree));
                let watched = nearest.chain([(own, Hint::ClaimGone)]);
                let all = watched.map(|(ticket, hint)| Box::pin(self.ticket_gone(ticket, Cursor(since), hint)));
                // Where it stands is told as of when the claim looked, as everywhere here.
                return select_all(all).await.0.map(|woken| Woken { cursor, ..woken });
            };
            let (entries, index) = told?;
            let is_there = |ticket: &Awaited| entries.iter().any(|entry| ticket.is(entry));
            let hint = if !is_there(own) {
                Hint::ClaimGone
            } else if !awaited.iter().all(is_there) {
                Hint::MaybeFree
            } else if index == 0 {
                Hint::StillHeld { holder: None }
            } else {
                since = index;
                continue;
            };
            return Ok(Woken { cursor, hint });
        }
    }

    /// Returns when the key or its line may have changed.
    pub(crate) async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        let (shared, line) = (&self.shared, line(key));
        let Some(cursor) = cursor else {
            let of_key = shared.watches.index(&shared.api, key.as_str()).await?;
            let _permit = shared.watches.short.acquire().await;
            let (_, of_line) = shared.api.wait_below::<String>(&line, Shown::Names, None).await?;
            return Ok(Cursor(of_key.max(of_line)));
        };
        let mut of_line = shared.watches.waits.watching(&shared.api, Watched::NamesBelow(line));
        let index = tokio::select! {
            biased;
            changed = shared.watches.wait(&shared.api, key.as_str(), cursor.0) => changed?.1,
            changed = of_line.news_in_turn(cursor.0) => changed?.1,
        };
        Ok(Cursor(index))
    }
}
