//! The URLs of stores.

use dlock_consul::ConsulOptions;

use super::consul::everything;

/// A line of text as the URL of a store; a `*` in it stands for a secret.
pub fn store_url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let text = text.lines().next().unwrap_or_default();
    let url = text.replace('*', SECRET);
    // What can be used is not: a client is slow to set up, and a store in memory stays.
    if url.starts_with("memory://") || ConsulOptions::from_url(&url).is_ok() {
        return;
    }
    let Err(error) = dlock::backend(&url) else {
        // Nothing is opened before it is asked.
        return assert!(url.starts_with("sqlite:///"), "there is no store at {url:?}");
    };
    let told = everything(&error);
    assert!(!hides_all(text) || !told.contains(SECRET), "{url:?} shows its secret: {told}");
}

/// Improbable anywhere else.
pub(super) const SECRET: &str = "hunter2hunter2";

/// Whether every `*` stands where a password, a token or another parameter may.
pub(super) fn hides_all(text: &str) -> bool {
    // What has the form of a scheme is one.
    let is_scheme = |text: &str| text.chars().all(|c| c == '*' || c.is_ascii_alphanumeric() || "+-.".contains(c));
    let scheme = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme)).map_or(0, |(scheme, _)| scheme.len());
    let user = text.rfind('@').unwrap_or(0);
    let parameters = text.find(['?', '#']).unwrap_or(text.len());
    text.match_indices('*').all(|(place, _)| (scheme..user).contains(&place) || place > parameters)
}
