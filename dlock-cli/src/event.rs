//! What happens to a lock, as programs read it line by line.

use serde::Serialize;

use crate::contender::Contender;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Event<'a> {
    at: String,
    #[serde(rename = "event")]
    what: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<Contender>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl<'a> Event<'a> {
    /// It happened now.
    pub fn new(what: &'static str, key: &'a str) -> Self {
        Self { at: now(), what, key, token: None, holder: None, reason: None }
    }

    /// With the token of the grant that it is about.
    pub fn token(self, token: Option<u64>) -> Self {
        Self { token, ..self }
    }

    /// With who holds the lock.
    pub fn holder(self, holder: Contender) -> Self {
        Self { token: holder.token, holder: Some(holder), ..self }
    }

    /// With why it happened.
    pub fn reason(self, reason: &impl ToString) -> Self {
        Self { reason: Some(reason.to_string()), ..self }
    }
}

/// The time of day, to the millisecond.
pub fn now() -> String {
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(3)).timestamp_to_string(&jiff::Timestamp::now())
}
