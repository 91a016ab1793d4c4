//! How do I make sure that a migration has everything it touches to itself?
//!
//! `cargo run -p dlock-examples --bin migration -- [URL]`, for example with `consul://127.0.0.1:8500`: it holds three keys, taken all at once or
//! none, whoever names them in what order. Loss of any of them drops the work.

use std::time::Duration;

use dlock::AllHeld;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://migration".to_owned());
    let locker = dlock::connect(&url).await?;

    // Two releases of the same program, whose authors did not agree on an order: neither waits for the other for ever.
    let one = locker.lock_all(["tables/orders", "tables/customers", "tables/invoices"]);
    let other = locker.lock_all(["tables/invoices", "tables/orders"]).wait_at_most(Duration::from_secs(30));
    let (one, other) = tokio::join!(
        one.metadata("migration", "2026-11").run(|held| migrate("all three", held)),
        other.metadata("migration", "2026-12").run(|held| migrate("two of them", held)),
    );
    let steps = one? + other?;
    println!("done in {steps} steps");
    locker.shutdown(Duration::from_secs(3)).await;
    Ok(())
}

async fn migrate(what: &str, held: AllHeld) -> usize {
    for lock in held.locks() {
        let token = lock.token().map_or(0, dlock::FencingToken::get);
        println!("{what}: migrating {} under token {token}", lock.key());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    held.locks().len()
}
