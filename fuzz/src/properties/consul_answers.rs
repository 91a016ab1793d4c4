//! What Consul, or whatever is in between, answers.

use dlock_consul::Answer;
use dlock_core::{
    Cursor, FencingToken, Granted, LockBackend, Metadata, Place, Release, Renewal, SessionId, SessionRequest, Standing,
};
use std::sync::Arc;

use super::consul::{TTL, Told, at_once, claim};

/// Every call of the backend, told these answers.
///
/// An answer is a line with status and, where there is one, `X-Consul-Index`; its body follows, up to a line `---`.
pub fn consul_answers(bytes: &[u8]) {
    let answers = answers(&String::from_utf8_lossy(bytes));
    let session = SessionId::new("e5bd3b5b-a98a-4b71-a4be-8bf8d5d8ef5e");
    let claim = Arc::new(claim(None));
    let granted = Granted { claim: claim.clone(), token: FencingToken::new(17).expect("17 is a token") };
    let told = || Told::backend(answers.iter().cloned());
    let first = answers.first().map(|answer| answer.status);
    let well = |told: &Told| told.given().iter().any(|answer| (200..300).contains(&answer.status));
    let reads_of_absence = |told: &Told| told.given().iter().any(|answer| answer.status == 404 && answer.index.is_some());

    let (consul, given) = told();
    let request = SessionRequest { id: SessionId::new("ignored"), ttl: TTL, owner: "host/1/test".into() };
    if let Ok(opened) = at_once(consul.open(&request)) {
        assert!(well(&given), "no session was opened");
        assert!(!opened.id.as_str().is_empty(), "a session without a name is none");
        whole_life(&consul, &opened.id, &granted);
    }

    let (consul, _) = told();
    match at_once(consul.renew(&session)) {
        Ok(Renewal::Renewed { ttl }) => assert!(!ttl.is_zero() && first.is_some_and(|status| (200..300).contains(&status))),
        Ok(Renewal::Gone) => {
            let said = answers.first().is_some_and(|answer| answer.status == 404 && answer.body.contains("Session id"));
            assert!(said || first.is_some_and(|status| (200..300).contains(&status)));
        }
        Err(_) => {}
    }

    let (consul, given) = told();
    if let Ok(standing) = at_once(consul.claim(&session, &claim, Place::Try)) {
        stands(&standing, &given, &well);
        if matches!(at_once(consul.release(&session, &claim)), Ok(Release::Released)) {
            assert!(well(&given), "nothing was released");
        }
    }

    let (consul, given) = told();
    if at_once(consul.release(&session, &claim)).is_ok() {
        assert!(well(&given) || reads_of_absence(&given) || first == Some(409), "nobody said what became of the claim");
    }

    let (consul, _) = told();
    if let Ok(found) = at_once(consul.audit(&session, std::slice::from_ref(&granted))) {
        assert!(found.iter().all(|found| found.claim == claim.id));
        assert!(found.is_empty() || first == Some(409), "only a refused check tells of interference");
    }

    let (consul, given) = told();
    if at_once(consul.evict(&claim.key, granted.token)).is_ok_and(|evicted| evicted) {
        assert!(given.given().len() == 2 && well(&given), "nothing was released by force");
    }

    let (consul, _) = told();
    if let Ok(held) = at_once(consul.list("locks/")) {
        assert!(held.is_sorted_by(|(one, _), (other, _)| one <= other));
        assert!(held.iter().all(|(_, holder)| holder.session.is_some()), "only what is held is listed");
    }

    let (consul, given) = told();
    if let Ok(seen) = at_once(consul.inspect(&claim.key)) {
        assert!(seen.holders.len() <= 1);
        assert!(well(&given) || reads_of_absence(&given));
    }

    for cursor in [0, 17] {
        let (consul, _) = told();
        _ = at_once(consul.wait(&session, &claim, Cursor(cursor)));
        _ = at_once(consul.changed(&claim.key, Some(Cursor(cursor))));
    }
    for granted in [None, Some(&granted)] {
        let (consul, _) = told();
        _ = at_once(consul.disturbed(&session, granted, None));
    }
    let (consul, _) = told();
    _ = at_once(consul.amend(&session, &claim, &Metadata::new()));
    _ = at_once(consul.close(&session));
}

/// A session goes on with what the answers said of it.
fn whole_life(consul: &impl LockBackend, session: &SessionId, granted: &Granted) {
    _ = at_once(consul.claim(session, &granted.claim, Place::Queue));
    _ = at_once(consul.renew(session));
    _ = at_once(consul.disturbed(session, None, None));
    _ = at_once(consul.release(session, &granted.claim));
    _ = at_once(consul.close(session));
}

fn stands(standing: &Standing, given: &Told, well: &impl Fn(&Told) -> bool) {
    match standing {
        Standing::Held { token } => {
            let told = given.given();
            let says = |answer: &Answer| (200..300).contains(&answer.status) && answer.body.contains(&token.to_string());
            assert!(told.iter().any(says), "nobody granted token {token}");
        }
        Standing::Busy { .. } => assert!(well(given)),
        Standing::SessionGone => assert!(given.given().iter().any(|answer| answer.status == 409), "nobody said so"),
        Standing::Delayed { at_most } => assert!(!at_most.is_zero()),
        Standing::Waiting { .. } | Standing::ClaimGone => unreachable!("Consul keeps no queue"),
    }
}

fn answers(text: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    for part in text.split("\n---\n").take(8) {
        let (head, body) = part.split_once('\n').unwrap_or((part, ""));
        let mut numbers = head.split_whitespace();
        let Some(status) = numbers.next().and_then(|status| status.parse().ok()) else { continue };
        // No other number is a status of HTTP.
        if (100..1000).contains(&status) {
            let index = numbers.next().and_then(|index| index.parse().ok());
            answers.push(Answer { status, index, body: body.to_owned() });
        }
    }
    answers
}
