//! One agent for all tests of a process.

use std::net::SocketAddr;

use tokio::sync::{OnceCell, oneshot};

use super::consul::{ConsulAgent, StartError};

/// Where an agent listens that all tests of this process share; started by the first who asks.
///
/// It ends with the process. Tests that stop it, restart it, or care what others do at it, start one of their own.
pub async fn shared_consul() -> SocketAddr {
    static AGENT: OnceCell<SocketAddr> = OnceCell::const_new();
    let start = async || {
        let (tell, told) = oneshot::channel();
        // The agent dies with the thread that started it, and the threads of tests end; this one stays until the process ends.
        std::thread::spawn(move || {
            let agent = start_here();
            _ = tell.send(agent.as_ref().map(ConsulAgent::address).map_err(ToString::to_string));
            loop {
                std::thread::park();
            }
        });
        told.await.expect("the thread of the agent tells how it went").expect("an agent must start")
    };
    *AGENT.get_or_init(start).await
}

fn start_here() -> Result<ConsulAgent, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let agent = runtime.block_on(ConsulAgent::start())?;
    // Nobody drops it, so its folder is given up now that everything in it is read.
    agent.forget_folder();
    Ok(agent)
}
