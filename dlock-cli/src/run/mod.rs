//! `dlock run`: a command under a lock.

mod job;
mod measurements;
mod program;

use std::time::Duration;

use dlock::{FencingToken, LockGuard, Loss};
use tokio::time::Instant;

use self::job::{Job, News, Outcome, Task};
use crate::acquire::{Acquired, acquire, check, keep};
use crate::args::Run;
use crate::exit::{Exit, Failure};
use crate::guardian::tree;
use crate::guardian::wire::{Gone, Why};
use crate::output::{self, Output, note};
use crate::session::Session;
use crate::signals::{self, asks_to_end_for_good, suspend};
use crate::store::Store;

/// `INT` and `QUIT`: what the keyboard sends to those who have the terminal.
const KEYBOARD: [i32; 2] = [2, 3];

/// What a command has to stop, unless set otherwise or the ttl is short.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// Waits for the lock, runs the command under it, and gives it back.
pub async fn run(store: &Store, run: &Run, output: Output) -> Result<Exit, Failure> {
    if let Some(address) = run.metrics_listen {
        measurements::serve(address)?;
    }
    let mut session = Session::new(store, run.lock.ttl, output)?;
    check(&run.lock, &session.locker)?;
    let times = Times::new(run, session.locker.ttl())?;
    check_proc()?;
    reap_as_first_process();
    if let Some(failure) = program::refusal(&run.command) {
        return Err(failure);
    }
    if !run.forever
        && let Some(ended) = session.reach().await
    {
        return ended;
    }
    let mut supervisor = Supervisor { keyboard: None, url: store.url()?, run, times, session };
    let ended = if run.forever { supervisor.forever().await } else { supervisor.once().await };
    supervisor.session.close().await;
    if let Some(number) = supervisor.keyboard {
        signals::end_as_by_keyboard(number);
    }
    ended
}

/// What is found of this process's descendants is what `/proc` says: it must speak of the processes that we see.
fn check_proc() -> Result<(), Failure> {
    let Ok(itself) = std::fs::read_link("/proc/self") else { return Ok(()) };
    if itself.to_str().and_then(|pid| pid.parse().ok()) == Some(std::process::id()) {
        return Ok(());
    }
    Err(Failure::new(
        Exit::CONFIGURATION,
        "/proc is that of another pid namespace: mount it anew, for example by unshare --mount-proc",
    ))
}

/// The first process of a container gets all orphans, and waits for them when they have ended.
fn reap_as_first_process() {
    if std::process::id() != 1 {
        return;
    }
    // Ends with the runtime, and so with the process.
    tokio::spawn(async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tree::reap_adopted(&[]);
        }
    });
}

/// The times that a term keeps to.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Between `TERM` and `KILL`.
    grace: Duration,
    /// Between `KILL` and the deadline: enough for the system to do it.
    margin: Duration,
}

impl Times {
    fn new(run: &Run, ttl: Duration) -> Result<Self, Failure> {
        let hold = run.lock.hold_at_most.unwrap_or(Duration::MAX);
        if hold.is_zero() {
            return Err(Failure::new(Exit::USAGE, "--hold-at-most must be longer than zero"));
        }
        // The work is to have at least half of the time that it may take.
        let grace = run.grace.unwrap_or_else(|| DEFAULT_GRACE.min(ttl / 3).min(hold / 2));
        let margin = (ttl / 12).clamp(Duration::from_millis(20), Duration::from_millis(500)).min(hold / 8);
        if grace + margin >= hold {
            let (grace, hold) = (humantime::format_duration(grace), humantime::format_duration(hold));
            return Err(Failure::new(Exit::USAGE, format!("a grace of {grace} leaves nothing of --hold-at-most {hold}")));
        }
        if ttl < grace.saturating_mul(3) {
            let (needed, fits) = (humantime::format_duration(grace.saturating_mul(3)), humantime::format_duration(ttl / 3));
            let (grace, ttl) = (humantime::format_duration(grace), humantime::format_duration(ttl));
            let message =
                format!("a grace of {grace} needs a ttl of at least {needed}, not {ttl}; use --ttl {needed}, or --grace {fits}");
            return Err(Failure::new(Exit::USAGE, message));
        }
        Ok(Self { grace, margin })
    }

    fn stop_before(self) -> Duration {
        self.grace + self.margin
    }
}

struct Supervisor<'a> {
    /// What the keyboard sent to the command, and not to us.
    keyboard: Option<i32>,
    url: &'a str,
    run: &'a Run,
    times: Times,
    session: Session,
}

/// How one term ended.
struct Term {
    exit: Exit,
    /// Somebody asked to end.
    asked: bool,
    /// The signal of the keyboard that ended the command. Whoever waits for `dlock`, as a script does, is to hear it too.
    keyboard: Option<i32>,
}

impl Term {
    fn new(exit: Exit, asked: bool) -> Self {
        Self { exit, asked, keyboard: None }
    }
}

impl Supervisor<'_> {
    async fn once(&mut self) -> Result<Exit, Failure> {
        match self.acquire().await? {
            Acquired::Interrupted(number) => Ok(Exit::of_signal(number)),
            Acquired::Held(guard) => self.term(guard).await.map(|term| self.ended(&term)),
        }
    }

    /// One term after the other, until a signal asks to end.
    async fn forever(&mut self) -> Result<Exit, Failure> {
        let mut pause = Pause::default();
        loop {
            let mut began = Instant::now();
            match self.acquire().await {
                Ok(Acquired::Interrupted(number)) => return Ok(Exit::of_signal(number)),
                Ok(Acquired::Held(guard)) => {
                    began = Instant::now();
                    let term = match self.term(guard).await {
                        Ok(term) => term,
                        // It may be possible later: too many processes, too little memory.
                        Err(failure) => {
                            note(&failure);
                            Term::new(failure.exit, false)
                        }
                    };
                    if term.asked {
                        return Ok(self.ended(&term));
                    }
                    self.session.output.note(format_args!(
                        "the command ended with {}; waiting for {} again",
                        term.exit.code(),
                        self.run.lock.key
                    ));
                }
                Err(failure) if failure.exit == Exit::UNREACHABLE => self.session.output.note(format_args!("{failure}; going on")),
                Err(failure) => return Err(failure),
            }
            let pause = pause.after(began.elapsed());
            tokio::select! {
                biased;
                number = self.session.signals.end() => return Ok(Exit::of_signal(number)),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What to end with after the last term.
    fn ended(&mut self, term: &Term) -> Exit {
        self.keyboard = term.keyboard;
        term.exit
    }

    async fn acquire(&mut self) -> Result<Acquired, Failure> {
        acquire(&self.run.lock, self.times.stop_before(), &mut self.session).await
    }

    /// Runs the command for as long as the lock is held.
    async fn term(&mut self, guard: LockGuard) -> Result<Term, Failure> {
        let since = Instant::now();
        let task = self.task(guard.token());
        // What is said of the wait comes before what the command says.
        output::flush(Duration::from_millis(200));
        let mut job = Job::start(&task, guard.held())
            .map_err(|error| Failure::new(Exit::CANNOT_RUN, format!("cannot start the guardian: {error}")))?;
        let (mut asked, mut lingering) = (false, false);
        let mut term = loop {
            tokio::select! {
                biased;
                news = job.news() => match news {
                    News::Over(outcome) => break self.after(outcome, asked)?,
                    News::Lingering(pids) => {
                        lingering = true;
                        note(format_args!("the command has ended, and these processes of it cannot be killed: {pids:?}; {} is kept until they end", self.run.lock.key));
                    }
                    News::Suspended { continued: true } => note("a command under a lock is not suspended by the keyboard; it goes on"),
                    News::Suspended { continued: false } => {
                        note("the command stopped, for it wants the terminal, which is not its own in a pipeline or in the background; TERM ends it");
                    }
                },
                reason = guard.lost() => break self.lose(&mut job, reason).await,
                number = self.session.signals.next() => {
                    if number == suspend() {
                        note("a dlock that has a lock is not suspended by the keyboard");
                        continue;
                    }
                    asked |= asks_to_end_for_good(number);
                    if lingering && asked {
                        note("giving up the lock although something of the command still runs");
                        break Term::new(Exit::LOST, asked);
                    }
                    job.signal(number);
                }
            }
        };
        term.asked |= asked;
        if term.keyboard.is_some() && !job.had_terminal() {
            term.keyboard = None;
        }
        // What the keyboard ended is not begun again.
        term.asked |= term.keyboard.is_some();
        term.asked |= self.hold_on(&guard, since, term.asked).await;
        if let Err(unknown) = guard.release().await {
            note(unknown);
        }
        Ok(term)
    }

    fn task(&self, token: Option<FencingToken>) -> Task {
        Task {
            command: self.run.command.clone(),
            environment: vec![
                ("DLOCK_KEY", Some(self.run.lock.key.clone())),
                ("DLOCK_BACKEND", Some(self.url.to_owned())),
                // A `dlock` within the command means the same store.
                ("DLOCK_URL", Some(self.url.to_owned())),
                // A command under two locks must not take the other's for this one's.
                ("DLOCK_TOKEN", token.map(|token| token.get().to_string())),
            ],
            grace: self.times.grace,
            margin: self.times.margin,
        }
    }

    /// What the command's end means.
    fn after(&self, outcome: Outcome, asked: bool) -> Result<Term, Failure> {
        let key = &self.run.lock.key;
        match outcome {
            Outcome::Gone(gone) => {
                report_left(&gone);
                match gone.why {
                    Why::Itself if gone.left.is_empty() => {
                        let keyboard = gone.signal.filter(|signal| KEYBOARD.contains(signal));
                        Ok(Term { exit: Exit::of_command(gone.code), asked, keyboard })
                    }
                    Why::Itself => Ok(Term::new(Exit::LOST, asked)),
                    Why::Deadline | Why::Ordered => {
                        note(format_args!("the lock {key} was lost, and nothing was heard of it in time: the command was stopped"));
                        Ok(Term::new(Exit::LOST, asked))
                    }
                }
            }
            Outcome::TooLate => {
                note(format_args!("the lock {key} was lost before the command could start"));
                Ok(Term::new(Exit::LOST, asked))
            }
            Outcome::NotStarted(why) => Err(Failure::new(Exit::CANNOT_RUN, format!("the command was not started: {why}"))),
            Outcome::Unguarded => {
                note("the guardian of the command was killed, and the command with it");
                Ok(Term::new(Exit::LOST, asked))
            }
        }
    }

    /// Stops the command, in time.
    async fn lose(&mut self, job: &mut Job, reason: Loss) -> Term {
        job.end();
        note(format_args!("the lock {} was lost: {reason}; stopping the command", self.run.lock.key));
        let mut asked = false;
        // The guardian has it done by then; if it cannot, we do, still before the deadline.
        let limit = Instant::now() + self.times.grace + self.times.margin / 2;
        loop {
            tokio::select! {
                biased;
                news = job.news() => match news {
                    News::Over(Outcome::Gone(gone)) => {
                        report_left(&gone);
                        break;
                    }
                    News::Over(_) => break,
                    News::Lingering(_) | News::Suspended { .. } => {}
                },
                () = tokio::time::sleep_until(limit) => {
                    let left = job.kill().await;
                    if !left.is_empty() {
                        note(format_args!("these processes of the command could not be killed: {left:?}"));
                    }
                    break;
                }
                number = self.session.signals.next() => asked |= asks_to_end_for_good(number),
            }
        }
        Term::new(Exit::LOST, asked)
    }

    /// Keeps the lock for as long as it is to be held at least. A signal that asks to end ends that too, and is told.
    async fn hold_on(&mut self, guard: &LockGuard, since: Instant, asked: bool) -> bool {
        let Some(least) = self.run.lock.hold_at_least.filter(|_| !asked) else { return false };
        keep(guard, since, least, &mut self.session).await
    }
}

fn report_left(gone: &Gone) {
    if !gone.left.is_empty() {
        note(format_args!("these processes of the command could not be killed: {:?}", gone.left));
    }
}

/// The pause between two terms: short after a long one, longer and longer after short ones.
#[derive(Debug, Default)]
struct Pause {
    short_ones: u32,
}

impl Pause {
    const LEAST: Duration = Duration::from_millis(500);
    const MOST: Duration = Duration::from_secs(30);
    /// A term of so long is no failure at once.
    const LONG: Duration = Duration::from_secs(10);

    fn after(&mut self, term: Duration) -> Duration {
        self.short_ones = if term >= Self::LONG { 0 } else { self.short_ones.saturating_add(1) };
        let pause = Self::LEAST * 2_u32.saturating_pow(self.short_ones.saturating_sub(1).min(10));
        pause.min(Self::MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_that_end_at_once_are_further_and_further_apart() {
        let mut pause = Pause::default();
        let pauses: Vec<_> = (0..8).map(|_| pause.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(pause.after(Duration::from_secs(60)), Pause::LEAST);
    }
}
