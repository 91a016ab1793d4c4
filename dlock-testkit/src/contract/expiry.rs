//! The life of a session.

use dlock_core::{ErrorKind, Renewal, SessionId, SessionRequest};
use tokio::time::{Instant, sleep};

use super::{Client, Harness, claim_of};

/// For as long as it is renewed in time.
pub async fn a_renewed_session_keeps_what_it_has(harness: &dyn Harness) {
    let ttl = harness.short_ttl();
    let client = Client::with_ttl(harness, ttl).await;
    let claim = claim_of("k");
    client.held(&claim).await;
    for _ in 0..10 {
        sleep(ttl / 3).await;
        let renewal = client.backend.renew(&client.session).await.unwrap();
        assert!(matches!(renewal, Renewal::Renewed { ttl: granted } if granted >= ttl), "{renewal:?}");
    }
    assert!(client.release(&claim).await);
}

/// Belief counts on the earliest, takeover on the latest expiry.
pub async fn a_silent_session_lapses_within_the_declared_time_and_not_before_its_ttl(harness: &dyn Harness) {
    let ttl = harness.short_ttl();
    let before_open = Instant::now();
    let silent = Client::with_ttl(harness, ttl).await;
    let opened = Instant::now();
    let claim = claim_of("k");
    silent.held(&claim).await;
    let observer = Client::new(harness).await;
    let at_most = ttl * silent.backend.capabilities().lapses_within_ttls;
    while observer.holders(&claim.key).await > 0 {
        assert!(opened.elapsed() <= at_most + harness.prompt(), "still held after {:?}", opened.elapsed());
        sleep(ttl / 50).await;
    }
    assert!(before_open.elapsed() >= ttl, "free after {:?}", before_open.elapsed());
    assert_eq!(silent.backend.renew(&silent.session).await.unwrap(), Renewal::Gone);
}

/// Leaving gives everything back; leaving twice is as good.
pub async fn a_closed_session_has_nothing(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let (one, two) = (claim_of("one"), claim_of("two"));
    client.held(&one).await;
    client.held(&two).await;
    client.backend.close(&client.session).await.unwrap();
    client.backend.close(&client.session).await.unwrap();
    let other = Client::new(harness).await;
    assert_eq!(other.holders(&one.key).await + other.holders(&two.key).await, 0);
}

/// A session never comes back.
pub async fn what_is_gone_stays_gone(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    assert!(matches!(client.backend.renew(&client.session).await.unwrap(), Renewal::Renewed { .. }));
    harness.end_session(&client.session).await;
    for _ in 0..3 {
        assert_eq!(client.backend.renew(&client.session).await.unwrap(), Renewal::Gone);
    }
}

/// Refused with what would be right, never rounded in silence.
pub async fn a_ttl_out_of_range_is_refused(harness: &dyn Harness) {
    let backend = harness.client().await;
    let range = backend.capabilities().ttl;
    for ttl in [range.min / 2, range.max * 2] {
        let request = SessionRequest { id: SessionId::from_bits(fastrand::u128(..)), ttl, owner: "host/1/contract".into() };
        let error = backend.open(&request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}
