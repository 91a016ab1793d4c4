//! The `Locker` on a file, in real time.
#![allow(missing_docs)]

#[path = "../../dlock-sqlite/tests/on_sqlite/mod.rs"]
mod on_sqlite;

use on_sqlite::OnSqlite;

dlock_sim::locker_suite! {
    #[tokio::test]
    OnSqlite::start().await.with_second_process(env!("CARGO_BIN_EXE_holder"))
}
