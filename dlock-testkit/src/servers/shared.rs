//! One server for all tests of a process.

use std::net::SocketAddr;

use tokio::sync::{OnceCell, oneshot};

use super::consul::ConsulAgent;
use super::etcd::EtcdServer;
use super::start::StartError;

/// Where an agent listens that all tests of this process share; started by the first who asks.
///
/// It ends with the process. Tests that stop it, restart it, or care what others do at it, start one of their own.
pub async fn shared_consul() -> SocketAddr {
    static AGENT: OnceCell<SocketAddr> = OnceCell::const_new();
    let start = async || {
        let agent = ConsulAgent::start().await?;
        // Nobody drops it, so its folder is given up now that everything in it is read.
        agent.forget_folder();
        let address = agent.address();
        Ok((address, agent))
    };
    *AGENT.get_or_init(async || kept(start).await).await
}

/// Where an etcd of one member listens that all tests of this process share; started by the first who asks.
///
/// It ends with the process. Its data is off the disk from the start, so it takes no more than some ten thousand writes. Tests that stop
/// it, restart it, or care what others do at it, start one of their own.
pub async fn shared_etcd() -> SocketAddr {
    static SERVER: OnceCell<SocketAddr> = OnceCell::const_new();
    let start = async || {
        let server = EtcdServer::start().await?;
        // The files that it has open are all that it writes to before its first snapshot.
        server.forget_folder();
        let address = server.address();
        Ok((address, server))
    };
    *SERVER.get_or_init(async || kept(start).await).await
}

/// Starts a server that lives as long as this process.
async fn kept<S>(start: impl AsyncFnOnce() -> Result<(SocketAddr, S), StartError> + Send + 'static) -> SocketAddr {
    let (tell, told) = oneshot::channel();
    // The server dies with the thread that started it, and the threads of tests end; this one stays until the process ends.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let started = runtime.map_err(StartError::from).and_then(|runtime| runtime.block_on(start()));
        _ = tell.send(started.as_ref().map(|(address, _)| *address).map_err(ToString::to_string));
        loop {
            std::thread::park();
        }
    });
    told.await.expect("the thread of the server tells how it went").expect("a server must start")
}
