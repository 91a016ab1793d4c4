//! The lock of the crate `rs-consul`, as its documentation has it used: an attempt, and when that fails a wait for the key to change.

use std::time::Duration;

use rs_consul::{Config, Consul, ConsulError, Lock, LockRequest, LockWatchRequest};

use crate::Outcome;
use crate::raw::value;

/// A client of an agent.
pub struct RsConsul {
    /// Its locks borrow it, so it lives as long as the process.
    consul: &'static Consul,
    /// How long the session of a lock lives, which nobody renews.
    session: Duration,
}

/// How long one wait for a key takes at most.
const WAIT: Duration = Duration::from_secs(10);

impl RsConsul {
    /// A client whose locks have sessions of this ttl.
    pub fn new(address: &str, session: Duration) -> Self {
        // It makes its connections ready for TLS, whether it speaks it or not, and this process knows two providers of that. Set before by
        // another client is as good.
        _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config { address: format!("http://{address}"), ..Config::default() };
        Self { consul: Box::leak(Box::new(Consul::new(config))), session }
    }

    /// Takes a key, and waits for it while another has it.
    pub async fn lock(&self, key: &str) -> Outcome<Lock<'static>> {
        let value = value();
        loop {
            let request = LockRequest { key, timeout: self.session, ..LockRequest::default() };
            let index = match self.consul.get_lock(request, value.as_bytes()).await {
                Ok(lock) => return Ok(lock),
                Err(ConsulError::LockAcquisitionFailure(index)) => index,
                Err(error) => return Err(error.into()),
            };
            self.consul.watch_lock(LockWatchRequest { key, index: Some(index), wait: WAIT, ..LockWatchRequest::default() }).await?;
        }
    }
}
