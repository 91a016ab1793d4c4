//! One key, put if it is absent, and deleted; whoever waits watches it, and all of them wake.

use super::{Member, revision};
use crate::Outcome;

/// Takes keys by writing them.
pub struct Raw(Member);

impl Raw {
    /// Opens the lease at a member.
    pub async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self(Member::connect(address).await?))
    }

    /// Leaves nothing there.
    pub async fn end(&self) -> Outcome<()> {
        self.0.end().await
    }

    /// Takes a key, and waits for it while another has it.
    pub async fn lock(&self, key: &str) -> Outcome<()> {
        loop {
            let answer = self.0.put(key, &[key], None).await?;
            if answer.succeeded() {
                return Ok(());
            }
            self.0.gone(key.as_bytes(), revision(answer.header())?).await?;
        }
    }

    /// Gives the key back.
    pub async fn unlock(&self, key: &str) -> Outcome<()> {
        self.0.delete(key).await
    }
}
