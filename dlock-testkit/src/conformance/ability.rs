//! What a store may or may not do, and how it refuses what it does not.

use std::fmt;
use std::num::NonZeroU32;

use dlock_core::{BackendError, Capabilities, Claim, Cursor, ErrorKind, FencingToken, Granted, Metadata, Mode, Order, Place};
use tokio::time::timeout;

use super::report::NotShown;
use super::stage::Stage;

/// Something that [`Capabilities`] declare or do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is the capability of that name
pub enum Ability {
    Fifo,
    Shared,
    Permits,
    Fences,
    Audits,
    WatchedSession,
    WatchedClaims,
    Amends,
    Lists,
    TellsChanges,
    Evicts,
    ClaimsAtOnce,
    GuardsWrites,
}

impl Ability {
    /// Each of them.
    pub const ALL: [Self; 13] = [
        Self::Fifo,
        Self::Shared,
        Self::Permits,
        Self::Fences,
        Self::Audits,
        Self::WatchedSession,
        Self::WatchedClaims,
        Self::Amends,
        Self::Lists,
        Self::TellsChanges,
        Self::Evicts,
        Self::ClaimsAtOnce,
        Self::GuardsWrites,
    ];

    /// Whether it is declared.
    pub fn is_declared(self, by: &Capabilities) -> bool {
        match self {
            Self::Fifo => by.order == Order::Fifo,
            Self::Shared => by.shared,
            Self::Permits => by.permits,
            Self::Fences => by.fences,
            Self::Audits => by.audits,
            Self::WatchedSession => by.watched_claims.is_some(),
            Self::WatchedClaims => by.watched_claims.is_some_and(|most| most > 0),
            Self::Amends => by.amends,
            Self::Lists => by.lists,
            Self::TellsChanges => by.tells_changes,
            Self::Evicts => by.evicts,
            Self::ClaimsAtOnce => by.claims_at_once.is_some(),
            Self::GuardsWrites => by.guards_writes,
        }
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "order: Fifo",
            Self::Shared => "shared",
            Self::Permits => "permits",
            Self::Fences => "fences",
            Self::Audits => "audits",
            Self::WatchedSession => "watched_claims",
            Self::WatchedClaims => "watched_claims above 0",
            Self::Amends => "amends",
            Self::Lists => "lists",
            Self::TellsChanges => "tells_changes",
            Self::Evicts => "evicts",
            Self::ClaimsAtOnce => "claims_at_once",
            Self::GuardsWrites => "guards_writes",
        })
    }
}

impl Stage {
    /// Goes on where the store declares this. Where it does not, makes sure that it is refused, and ends the case.
    pub async fn claims(&self, ability: Ability) -> Result<(), NotShown> {
        let client = self.client().await;
        let (backend, session) = (&client.backend, &client.session);
        if ability.is_declared(backend.capabilities()) {
            return Ok(());
        }
        let claim = self.claim("refused");
        let in_mode = |mode| Claim { mode, ..claim.clone() };
        let two = NonZeroU32::MIN.saturating_add(1);
        match ability {
            Ability::Fifo => self.refused(backend.confirm(session, &claim, Cursor(0))).await,
            Ability::Shared => self.refused(backend.claim(session, &in_mode(Mode::Shared), Place::Try)).await,
            Ability::Permits => self.refused(backend.claim(session, &in_mode(Mode::Permits(two)), Place::Try)).await,
            Ability::Audits => self.refused(backend.audit(session, &[])).await,
            Ability::WatchedSession => self.refused(backend.disturbed(session, None, None)).await,
            Ability::WatchedClaims => {
                let granted = client.granted(&claim).await;
                self.refused(backend.disturbed(session, Some(&granted), None)).await;
                client.release(&claim).await;
            }
            Ability::Amends => self.refused(backend.amend(session, &claim, &Metadata::new())).await,
            Ability::Lists => self.refused(backend.list(&self.prefix())).await,
            Ability::TellsChanges => self.refused(backend.changed(&claim.key, None)).await,
            Ability::Evicts => self.refused(backend.evict(&claim.key, FencingToken::new(1).expect("one is not zero"))).await,
            Ability::ClaimsAtOnce => {
                let claims = std::slice::from_ref(&claim);
                self.refused(backend.claim_all(session, claims)).await;
            }
            Ability::GuardsWrites => {
                let token = FencingToken::new(1).expect("one is not zero");
                let granted = Granted { claim: claim.clone().into(), token };
                self.refused(async { backend.ownership(session, &granted) }).await;
            }
            // Nothing to call: that a session can be closed instead is shown of every store.
            Ability::Fences => {}
        }
        assert_eq!(client.holders(&claim.key).await, 0, "what is refused leaves nothing");
        Err(NotShown::NotClaimed(ability))
    }

    async fn refused<T: fmt::Debug>(&self, call: impl Future<Output = Result<T, BackendError>>) {
        let answer = timeout(self.patience().await, call).await.expect("what is not declared is refused at once");
        let error = answer.expect_err("what is not declared must be refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "what is not declared is refused as unsupported: {error}");
    }
}
