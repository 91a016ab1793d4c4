//! How do I take a lock, work under it, and give it back?
//!
//! `cargo run -p dlock-examples --bin hello -- [URL]`, for example with `consul://127.0.0.1:8500`.

use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://hello".to_owned());
    let locker = dlock::connect(&url).await?;

    let guard = locker.lock("orders/42").wait_at_most(Duration::from_secs(5)).metadata("purpose", "greeting").await?;
    println!("locked {} with token {:?}, surely for {:?}", guard.key(), guard.token(), guard.remaining());

    match locker.try_lock("orders/42").await? {
        Some(_) => println!("this line is never printed: somebody holds the lock"),
        None => println!("a second try finds it taken"),
    }

    let answer = guard.guarded(async { 6 * 7 }).await?;
    println!("the work under the lock says {answer}");
    println!("giving it back: {:?}", guard.release().await?);

    let doubled = locker.lock("orders/42").run(|held| async move { held.token().map(|token| token.get() * 2) }).await?;
    println!("the same in one call, with a later token: {doubled:?} is twice of it");

    let report = locker.shutdown(Duration::from_secs(3)).await;
    println!("shut down, nothing left behind: {}", report.is_clean());
    Ok(())
}
