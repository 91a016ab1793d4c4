//! The conformance suite on the server of this example: what an author writes to prove a backend.
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{Key, LockBackend, SessionId};
use dlock_example_own_backend::Backend;
use dlock_example_own_backend::server::Server;
use dlock_testkit::conformance::{Harness, Hook, Hooked, Sent, UnderWay};
use dlock_testkit::proxy::{Fault, FaultProxy, Held, Matching};
use dlock_testkit::servers::http;

/// A server of its own for every case, with a proxy in front that spoils requests.
struct OwnServer {
    server: Server,
    file: PathBuf,
    /// Clients are behind the last; those before are cut off or failing.
    proxies: Mutex<Vec<FaultProxy>>,
}

impl OwnServer {
    async fn start() -> Self {
        let file = std::env::temp_dir().join(format!("dlock-own-backend-{:016x}", fastrand::u64(..)));
        let server = Server::start(file.clone()).await.unwrap();
        let proxy = FaultProxy::start(server.address()).await.unwrap();
        Self { server, file, proxies: Mutex::new(vec![proxy]) }
    }

    fn proxies(&self) -> MutexGuard<'_, Vec<FaultProxy>> {
        self.proxies.lock().unwrap()
    }

    /// What an operator asks, past the proxies; the answer as it is.
    async fn operate(&self, ask: &str) -> String {
        http(self.server.address(), "POST", "/", &[], ask).await.unwrap().body
    }

    /// Spoils the proxy of the clients that exist, and starts another for those to come.
    async fn spoil(&self, how: impl FnOnce(&FaultProxy)) {
        let fresh = FaultProxy::start(self.server.address()).await.unwrap();
        let mut proxies = self.proxies();
        how(proxies.last().unwrap());
        proxies.push(fresh);
    }

    fn matching(sent: Sent) -> Matching {
        Matching::any().body(match sent {
            Sent::Open => "{\"Open\"",
            Sent::Renew => "{\"Renew\"",
            Sent::Claim => "{\"Claim\"",
            Sent::Release => "{\"Release\"",
            Sent::Amend => "{\"Amend\"",
        })
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.file);
    }
}

#[async_trait]
impl Harness for OwnServer {
    fn name(&self) -> String {
        "the lock server of the example".to_owned()
    }

    async fn client(&self) -> Arc<dyn LockBackend> {
        Arc::new(Backend::new(self.proxies().last().unwrap().address()))
    }

    fn short_ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn long_ttl(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn prompt(&self) -> Duration {
        Duration::from_millis(500)
    }

    /// The server keeps nothing but locks, so there is nothing foreign; and it runs in this process, which cannot stand still.
    fn missing_hooks_allowed(&self) -> &[Hook] {
        &[Hook::PutForeign, Hook::Freeze]
    }

    async fn heal(&self) {
        for proxy in self.proxies().iter() {
            proxy.swallow(false);
            proxy.clear();
        }
    }

    async fn end_session(&self, session: &SessionId) -> Hooked {
        self.operate(&format!(r#"{{"Close":{{"session":"{session}"}}}}"#)).await;
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Hooked {
        self.operate(&format!(r#"{{"Delete":{{"key":"{key}"}}}}"#)).await;
        Ok(())
    }

    /// A free key is no key here, so this is the same.
    async fn release_by_force(&self, key: &Key) -> Hooked {
        self.delete(key).await
    }

    async fn sessions(&self, owner: &str) -> Hooked<usize> {
        let counted = self.operate(&format!(r#"{{"Sessions":{{"owner":"{owner}"}}}}"#)).await;
        Ok(counted.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap())
    }

    fn lose_reply(&self, of: Sent) -> Hooked {
        self.proxies().last().unwrap().next(Self::matching(of), Fault::DropResponse);
        Ok(())
    }

    fn hold(&self, what: Sent) -> Hooked<Box<dyn UnderWay>> {
        let held = self.proxies().last().unwrap().hold_next(Self::matching(what));
        Ok(Box::new(OnTheWay { held, server: self.server.address() }))
    }

    async fn cut(&self) -> Hooked {
        self.spoil(|proxy| proxy.swallow(true)).await;
        Ok(())
    }

    async fn fail(&self) -> Hooked {
        self.spoil(|proxy| proxy.all(Matching::any(), Fault::DropRequest)).await;
        Ok(())
    }

    async fn restart(&self) -> Hooked {
        self.server.crash().unwrap();
        Ok(())
    }
}

struct OnTheWay {
    held: Held,
    server: SocketAddr,
}

#[async_trait]
impl UnderWay for OnTheWay {
    async fn sent(&self) {
        self.held.sent().await;
    }

    async fn deliver(&self) {
        self.held.deliver(self.server).await.unwrap();
    }
}

dlock_testkit::conformance! { #[tokio::test] OwnServer::start().await }
