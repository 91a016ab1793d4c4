//! How dlock is proved, and suites that need both dlock and its test kit.
//!
//! [`model`] walks the real machines of `dlock-core` on the real in-memory store through every order of events within declared bounds. The
//! simulators draw one schedule per seed, far beyond those bounds: [`machines`] runs the pure machines under an event queue, [`locker`] the real
//! `Locker` on the in-memory store, [`wire`] the real clients of Consul and etcd against fake servers. All of them speak one language: a [`plan`] goes in, a
//! [`history`] comes out, and [`check`] says whether a promise was broken. [`campaign`] runs many seeds, [`shrink`] makes a failure small, and
//! [`timeline`] draws it. [`live`] is none of them: real processes on real servers, in real time.

pub mod campaign;
pub mod check;
pub mod history;
pub mod live;
pub mod locker;
pub mod machines;
pub mod model;
pub mod plan;
pub mod run;
pub mod shrink;
pub mod sometimes;
pub mod suite;
pub mod timeline;
pub mod wgl;
pub mod wire;
