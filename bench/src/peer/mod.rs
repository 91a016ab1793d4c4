//! What people use instead: other clients that take locks on the same servers.

pub mod command;
pub mod lock_service;
pub mod rs_consul;
