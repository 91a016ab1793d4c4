//! The life of a session.

use dlock_core::{ErrorKind, Place, Renewal, SessionId, SessionRequest, Standing};
use tokio::time::{Instant, sleep, timeout};

use crate::conformance::{Sent, Shown, Stage};

/// For as long as it is renewed in time.
pub async fn a_renewed_session_keeps_what_it_has(stage: &Stage) -> Shown {
    let ttl = stage.short_ttl() * 4;
    let (client, other) = (stage.client_with(ttl).await, stage.client().await);
    let claim = stage.claim("k");
    client.held(&claim).await;
    // Past the latest expiry of one that is not renewed.
    for _ in 0..=4 * client.backend.capabilities().lapses_within_ttls {
        sleep(ttl / 4).await;
        let renewal = client.backend.renew(&client.session).await.unwrap();
        assert!(matches!(renewal, Renewal::Renewed { ttl: granted } if granted >= ttl), "{renewal:?}");
        let standing = other.claim(&stage.claim("k"), Place::Try).await;
        assert!(matches!(standing, Standing::Busy { .. }), "{standing:?}");
    }
    assert!(client.release(&claim).await);
    Ok(())
}

/// Belief counts on the earliest, takeover on the latest expiry.
pub async fn a_silent_session_lapses_within_the_declared_time_and_not_before_its_ttl(stage: &Stage) -> Shown {
    let ttl = stage.short_ttl();
    let observer = stage.client().await;
    let before_open = Instant::now();
    let silent = stage.client_with(ttl).await;
    let opened = Instant::now();
    let claim = stage.claim("k");
    silent.held(&claim).await;
    let at_most = silent.lapses_within(ttl) + stage.prompt();
    // A machine that stands still asks once, however late that is.
    let mut late = 0;
    loop {
        let asked = opened.elapsed();
        if observer.holders(&claim.key).await == 0 {
            break;
        }
        late += u32::from(asked > at_most);
        assert!(late <= 50, "still held after {asked:?}");
        sleep(ttl / 50).await;
    }
    assert!(before_open.elapsed() >= ttl, "free after {:?}", before_open.elapsed());
    assert_eq!(silent.backend.renew(&silent.session).await.unwrap(), Renewal::Gone);
    Ok(())
}

/// A renewal that comes too late brings nothing back, and touches nobody who came since.
pub async fn a_late_renewal_brings_nothing_back(stage: &Stage) -> Shown {
    let ttl = stage.short_ttl();
    let (silent, other) = (stage.client_with(ttl).await, stage.client().await);
    let (lost, free) = (stage.claim("lost"), stage.claim("free"));
    silent.held(&lost).await;
    silent.held(&free).await;
    sleep(silent.lapses_within(ttl) + stage.moment()).await;
    let successor = stage.claim("lost");
    let granted = async {
        while !matches!(other.claim(&successor, Place::Try).await, Standing::Held { .. }) {
            sleep(stage.moment()).await;
        }
    };
    timeout(stage.patience().await, granted).await.expect("the session must lapse");
    assert_eq!(silent.backend.renew(&silent.session).await.unwrap(), Renewal::Gone);
    assert_eq!(other.holder(&successor.key).await, Some(successor.id));
    assert_eq!(other.holders(&free.key).await, 0);
    Ok(())
}

/// Renewing keeps what a session has, not what it had.
pub async fn renewing_brings_no_released_claim_back(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    assert!(client.release(&claim).await);
    assert!(matches!(client.backend.renew(&client.session).await.unwrap(), Renewal::Renewed { .. }));
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// A renewal without an answer may have counted; asked again it does.
pub async fn a_renewal_whose_reply_was_lost_can_be_repeated(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    stage.lose_reply(Sent::Renew)?;
    let lost = client.backend.renew(&client.session).await.unwrap_err();
    assert!(lost.kind().is_passing(), "{lost}");
    assert!(matches!(client.backend.renew(&client.session).await.unwrap(), Renewal::Renewed { .. }));
    assert_eq!(client.holder(&claim.key).await, Some(claim.id));
    Ok(())
}

/// A session that nobody learned of ends by itself.
pub async fn a_session_whose_opening_was_not_answered_lapses(stage: &Stage) -> Shown {
    let backend = stage.harness().client().await;
    let request =
        SessionRequest { id: SessionId::from_bits(fastrand::u128(..)), ttl: stage.short_ttl(), owner: stage.owner().into() };
    stage.lose_reply(Sent::Open)?;
    let lost = backend.open(&request).await.unwrap_err();
    assert!(lost.kind().is_passing(), "{lost}");
    let opened = Instant::now();
    let at_most = stage.short_ttl() * backend.capabilities().lapses_within_ttls + stage.patience().await;
    while stage.sessions(&stage.owner()).await? > 0 {
        assert!(opened.elapsed() <= at_most, "still there after {:?}", opened.elapsed());
        sleep(stage.short_ttl() / 10).await;
    }
    Ok(())
}

/// A session that is not known is told, not made.
pub async fn an_unknown_session_cannot_be_renewed(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let never = SessionId::new("11111111-2222-3333-4444-555555555555");
    for _ in 0..2 {
        assert_eq!(client.backend.renew(&never).await.unwrap(), Renewal::Gone);
    }
    Ok(())
}

/// Leaving gives everything back; leaving twice is as good.
pub async fn a_closed_session_has_nothing(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let (one, two) = (stage.claim("one"), stage.claim("two"));
    client.held(&one).await;
    client.held(&two).await;
    client.backend.close(&client.session).await.unwrap();
    client.backend.close(&client.session).await.unwrap();
    assert_eq!(other.holders(&one.key).await + other.holders(&two.key).await, 0);
    assert_eq!(client.backend.renew(&client.session).await.unwrap(), Renewal::Gone);
    Ok(())
}

/// Nothing is left of a client that came, was refused, and left.
pub async fn a_closed_session_is_not_kept(stage: &Stage) -> Shown {
    let holder = stage.client().await;
    holder.held(&stage.claim("k")).await;
    for _ in 0..10 {
        let client = stage.client().await;
        client.claim(&stage.claim("k"), Place::Try).await;
        client.backend.close(&client.session).await.unwrap();
    }
    assert_eq!(stage.sessions(&stage.owner()).await?, 1);
    Ok(())
}

/// One that ends does not take another along, even of the same client.
pub async fn the_end_of_one_session_is_not_that_of_another(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let another = client.another_session(stage.long_ttl()).await;
    let (one, two) = (stage.claim("one"), stage.claim("two"));
    client.held(&one).await;
    another.held(&two).await;
    stage.end_session(&client.session).await?;
    assert_eq!(client.backend.renew(&client.session).await.unwrap(), Renewal::Gone);
    assert!(matches!(another.backend.renew(&another.session).await.unwrap(), Renewal::Renewed { .. }));
    assert_eq!(another.holder(&two.key).await, Some(two.id));
    Ok(())
}

/// A session never comes back.
pub async fn what_is_gone_stays_gone(stage: &Stage) -> Shown {
    let client = stage.client().await;
    assert!(matches!(client.backend.renew(&client.session).await.unwrap(), Renewal::Renewed { .. }));
    stage.end_session(&client.session).await?;
    for _ in 0..3 {
        assert_eq!(client.backend.renew(&client.session).await.unwrap(), Renewal::Gone);
    }
    Ok(())
}

/// Both ends of the declared range are in it.
pub async fn the_ends_of_the_ttl_range_are_granted(stage: &Stage) -> Shown {
    let range = stage.harness().client().await.capabilities().ttl;
    for ttl in [range.min, range.max] {
        let client = stage.client_with(ttl).await;
        client.backend.close(&client.session).await.unwrap();
    }
    Ok(())
}

/// Refused with what would be right, never rounded in silence.
pub async fn a_ttl_out_of_range_is_refused(stage: &Stage) -> Shown {
    let backend = stage.harness().client().await;
    let range = backend.capabilities().ttl;
    for ttl in [range.min / 2, range.max * 2] {
        let request = SessionRequest { id: SessionId::from_bits(fastrand::u128(..)), ttl, owner: stage.owner().into() };
        let error = backend.open(&request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    Ok(())
}
