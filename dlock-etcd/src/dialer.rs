//! How a connection to an endpoint is made.

use std::fmt::Debug;
use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// Makes connections, for tests against a simulated network; production connects over TCP.
#[async_trait]
pub trait Dialer: Debug + Send + Sync + 'static {
    /// Connects to `host:port`. Free to drop.
    async fn dial(&self, endpoint: &str) -> io::Result<Box<dyn Connection>>;
}

/// A connection to an endpoint.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}
