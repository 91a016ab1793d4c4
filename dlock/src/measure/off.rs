//! What takes the place of `mod.rs` without the feature `metrics`: the same names, and nothing behind them.
#![allow(clippy::unused_self)]

use std::sync::Arc;

use dlock_core::{LockBackend, Loss, Mode, Moment};

use crate::clock::Clock;
use crate::error::LockError;

pub(crate) fn describe() {}

pub(crate) fn counted(backend: Arc<dyn LockBackend>) -> Arc<dyn LockBackend> {
    backend
}

pub(crate) struct Wait;

impl Wait {
    pub(crate) fn begin(_: Clock, _: Mode) -> Self {
        Self
    }

    pub(crate) fn end(self, _: Result<bool, &LockError>) {}
}

#[derive(Debug)]
pub(crate) struct Hold;

impl Hold {
    pub(crate) fn begin(_: Clock, _: Moment, _: Mode) -> Self {
        Self
    }

    pub(crate) fn end(&self, _: Loss) {}
}

#[derive(Debug)]
pub(crate) struct Suspect;

impl Suspect {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn tell(&mut self, _: bool) {}
}

pub(crate) struct AtGate;

impl AtGate {
    pub(crate) fn begin() -> Self {
        Self
    }
}

pub(crate) struct InQueue;

impl InQueue {
    pub(crate) fn begin() -> Self {
        Self
    }
}
