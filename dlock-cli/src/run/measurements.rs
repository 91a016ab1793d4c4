//! Measurements for Prometheus.

use std::net::SocketAddr;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use crate::exit::{Exit, Failure};

/// From a millisecond, a lock that is free, to a day, a job that is long.
const SECONDS: [f64; 12] = [0.001, 0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 28_800.0, 86_400.0];

/// Serves them until the process ends. To be called inside the runtime, before there is a locker.
pub fn serve(address: SocketAddr) -> Result<(), Failure> {
    let cannot = |error: &dyn std::error::Error| {
        Failure::new(Exit::CONFIGURATION, format!("cannot serve measurements on {address}: {error}"))
    };
    let builder = PrometheusBuilder::new().with_http_listener(address);
    let builder =
        builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS).map_err(|error| cannot(&error))?;
    let (recorder, server) = builder.build().map_err(|error| cannot(&error))?;
    metrics::set_global_recorder(recorder).map_err(|error| cannot(&error))?;
    // Ends with the runtime, and so with the process.
    tokio::spawn(server);
    Ok(())
}
