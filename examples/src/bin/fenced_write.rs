//! What if the holder is frozen between its check and its write?
//!
//! No lock can prevent that a process which was paused for longer than the ttl wakes up and goes on. The token can: the resource refuses
//! whatever is older than what it has seen. `cargo run -p dlock-examples --bin fenced_write`

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock::{Fence, FencingToken, Locker, StaleToken};
use tokio::runtime::{Builder, Runtime};

/// What the lock protects; in a database this is a column `fence`, and `UPDATE .. WHERE fence <= :token`.
#[derive(Default)]
struct Account {
    row: Mutex<(Fence, i64)>,
}

impl Account {
    fn set(&self, balance: i64, token: FencingToken) -> Result<(), StaleToken> {
        let mut row = self.row.lock().unwrap();
        row.0.admit(token)?;
        row.1 = balance;
        Ok(())
    }
}

const TTL: Duration = Duration::from_millis(500);

fn locker(runtime: &Runtime, name: &str) -> Result<Locker, Box<dyn Error + Send + Sync>> {
    Ok(runtime.block_on(dlock::builder("memory://bank")?.ttl(TTL).name(name).connect())?)
}

/// A holder whose whole process stops right after it has checked that it holds the lock.
fn frozen(account: &Account) -> Result<(), Box<dyn Error + Send + Sync>> {
    // One thread for everything, renewals too: while it sleeps, nothing of this holder runs.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let locker = locker(&runtime, "old")?;
    let guard = runtime.block_on(async { locker.lock("account/7").await })?;
    let token = guard.token().ok_or("an exclusive lock has a token")?;
    guard.check()?;
    println!("old: holds the lock with token {token}, is sure of it, and freezes before it writes");
    std::thread::sleep(TTL * 5);
    match account.set(100, token) {
        Ok(()) => println!("old: has overwritten what came after it"),
        Err(stale) => println!("old: wakes up and writes; refused: {stale}"),
    }
    println!("old: asks at last: {:?}", guard.check().map_err(|lost| lost.to_string()));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let account = Arc::new(Account::default());
    let old = std::thread::spawn({
        let account = Arc::clone(&account);
        move || frozen(&account)
    });
    std::thread::sleep(TTL / 2);
    let runtime = Runtime::new()?;
    let locker = locker(&runtime, "new")?;
    let guard = runtime.block_on(async { locker.lock("account/7").await })?;
    let token = guard.token().ok_or("an exclusive lock has a token")?;
    account.set(250, token)?;
    println!("new: was granted the lock with token {token} when the old holder's session had lapsed, and wrote 250");
    old.join().map_err(|_| "the old holder panicked")??;
    println!("the balance is {}", account.row.lock().unwrap().1);
    runtime.block_on(guard.release())?;
    Ok(())
}
