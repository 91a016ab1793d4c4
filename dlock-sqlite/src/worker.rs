//! Who does what is asked of the file: the caller at once, if that takes a few microseconds and nobody is ahead of it, or else a thread of its own.
//!
//! In the caller's own time nothing is waited for: no other process, no disk, no opening of the file. Handing a job to a thread and the answer back costs several times
//! what SQLite does for a lock.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dlock_core::{BackendError, ErrorKind};
use tokio::sync::oneshot;

use crate::file::{File, Log};
use crate::host::Host;
use crate::watcher::Watcher;
use crate::wire::{Request, Sent, Wire};

/// What is to be done with the file.
pub(crate) struct Job {
    pub(crate) sent: Sent,
    run: Work,
    /// Whether the caller hears of it.
    pub(crate) answers: bool,
    /// Whether it is so short that a caller may do it itself.
    is_short: bool,
}

/// Does a job; what is left is to tell of it. `None` if it is in haste, and there is something to wait for.
type Work = Box<dyn FnMut(&mut Desk, How) -> Option<Telling> + Send>;

/// Tells the caller, and those who wait for the change. Not before the next may come: it would find the desk taken, and be handed to the thread.
type Telling = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy)]
struct How {
    answers: bool,
    in_haste: bool,
}

/// Where jobs are handed in.
///
/// They are done one by one, in the order in which they arrive; but renewals, on which everything hangs, come first. The thread ends when the last of its callers
/// is gone. Nobody waits for that.
#[derive(Debug)]
pub(crate) struct Worker {
    entrance: Entrance,
    wire: Arc<dyn Wire>,
}

impl Worker {
    /// Starts the thread; the file is opened by its first job.
    pub(crate) fn start(place: Place, watcher: Arc<Watcher>, wire: Arc<dyn Wire>) -> std::io::Result<Self> {
        let (jobs, handed_in) = channel();
        let desk = Desk { place, file: None, watcher, untended: 0, slow_until: None };
        let (desk, not_done) = (Arc::new(Mutex::new(desk)), Arc::new(AtomicUsize::new(0)));
        let queue = Queue {
            desk: Arc::clone(&desk),
            not_done: Arc::clone(&not_done),
            tending: Arc::default(),
            renewals: VecDeque::new(),
            others: VecDeque::new(),
        };
        std::thread::Builder::new().name("dlock-sqlite".to_owned()).spawn(move || queue.work(&handed_in))?;
        Ok(Self { entrance: Entrance { desk, not_done, jobs }, wire })
    }

    /// Has something done with the file, by the thread.
    ///
    /// Dropped, a call that is still under way is done all the same if it may give something back. All others are not: nobody would know of it.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        sent: Sent,
        work: impl FnOnce(&mut File) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let mut work = Some(work);
        let once = move |file: &mut File| work.take().map_or_else(|| Err(lost()), |work| work(file));
        self.send(sent, false, once).await
    }

    /// The same for a change that is about one key: the caller does it, if nobody is ahead of it and there is nothing to wait for.
    ///
    /// What was put off begins anew on the thread, with nothing done.
    pub(crate) async fn ask_at_once<T: Send + 'static>(
        &self,
        sent: Sent,
        work: impl FnMut(&mut File) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        self.send(sent, true, work).await
    }

    async fn send<T: Send + 'static>(
        &self,
        sent: Sent,
        is_short: bool,
        work: impl FnMut(&mut File) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (tell, told) = oneshot::channel();
        let mut left = Some((tell, work));
        let run = move |desk: &mut Desk, how: How| {
            let nobody: Option<Telling> = Some(Box::new(|| ()));
            let Some((tell, mut work)) = left.take() else { return nobody };
            if tell.is_closed() && !matches!(sent, Sent::Release | Sent::Amend) {
                return nobody;
            }
            let Some(answer) = desk.with_file(how.in_haste, &mut work) else {
                left = Some((tell, work));
                return None;
            };
            // With what says that a claim is under way: it has arrived.
            drop(work);
            let (touched, watcher) = (desk.file.as_mut().and_then(File::touched), Arc::clone(&desk.watcher));
            let telling: Telling = Box::new(move || {
                if how.answers {
                    // Nobody awaits it any more: then it is found out or undone.
                    _ = tell.send(answer);
                }
                if let Some(touched) = touched {
                    watcher.nudge(&touched);
                }
            });
            Some(telling)
        };
        let job = Job { sent, run: Box::new(run), answers: true, is_short };
        self.wire.send(Request { job, entrance: self.entrance.clone() });
        told.await.map_err(|_| lost())?
    }
}

fn lost() -> BackendError {
    BackendError::new(ErrorKind::Ambiguous, "the request or its reply was lost on the way to the file of locks")
}

/// The way to the desk, past the queue if there is none. The desk comes first, so that it is the thread that closes the file at the end.
#[derive(Clone, Debug)]
pub(crate) struct Entrance {
    desk: Arc<Mutex<Desk>>,
    /// How many jobs were handed in and are not done.
    not_done: Arc<AtomicUsize>,
    jobs: Sender<Message>,
}

enum Message {
    Job(Job),
    /// Many changes were made since the log was looked at.
    TendLog,
}

impl Entrance {
    /// Lets a job in. In the order in which they come here they are done.
    pub(crate) fn hand_in(&self, mut job: Job) {
        let is_first = self.not_done.fetch_add(1, Ordering::AcqRel) == 0;
        if is_first
            && job.is_short
            && let Ok(mut desk) = self.desk.try_lock()
            && let Some(telling) = desk.do_in_haste(&mut job)
        {
            let is_log_due = desk.is_log_due();
            drop(desk);
            self.not_done.fetch_sub(1, Ordering::AcqRel);
            if is_log_due {
                // A thread that has ended had the file closed, and with it the log.
                _ = self.jobs.send(Message::TendLog);
            }
            return telling();
        }
        // A thread that has ended took its callers along.
        _ = self.jobs.send(Message::Job(job));
    }
}

fn desk_of(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread has to do.
struct Queue {
    desk: Arc<Mutex<Desk>>,
    not_done: Arc<AtomicUsize>,
    tending: Arc<AtomicBool>,
    renewals: VecDeque<Job>,
    others: VecDeque<Job>,
}

impl Queue {
    fn work(mut self, handed_in: &Receiver<Message>) {
        loop {
            let mut message = None;
            if self.renewals.is_empty() && self.others.is_empty() {
                let Ok(next) = handed_in.recv() else { return };
                message = Some(next);
            }
            let mut is_log_due = false;
            while let Some(next) = message.take().or_else(|| handed_in.try_recv().ok()) {
                match next {
                    Message::Job(job) if job.sent == Sent::Renew => self.renewals.push_back(job),
                    Message::Job(job) => self.others.push_back(job),
                    Message::TendLog => is_log_due = true,
                }
            }
            if let Some(mut job) = self.renewals.pop_front().or_else(|| self.others.pop_front()) {
                let mut desk = desk_of(&self.desk);
                let telling = desk.run(&mut job, false);
                is_log_due |= desk.is_log_due();
                drop(desk);
                self.not_done.fetch_sub(1, Ordering::AcqRel);
                if let Some(telling) = telling {
                    telling();
                }
            }
            if is_log_due {
                self.tend_log();
            }
        }
    }

    /// Has a log that is long put into the file, by a thread that ends with that: nobody waits for the disk meanwhile. One that cannot be now grows, and is looked at again after
    /// as many changes, but not before a pause.
    fn tend_log(&self) {
        let path = match &*desk_of(&self.desk) {
            Desk { file: Some(file), place, .. } if file.is_in_place() && file.is_log_long().unwrap_or(false) => place.path.clone(),
            _ => return,
        };
        if self.tending.swap(true, Ordering::AcqRel) {
            return;
        }
        // Set back by whatever ends the thread, also where it cannot be started.
        let tending = Tending(Arc::clone(&self.tending));
        _ = std::thread::Builder::new().name("dlock-sqlite-log".to_owned()).spawn(move || {
            let _tending = tending;
            if !Log::shorten(&path).unwrap_or(false) {
                std::thread::sleep(PAUSE);
            }
        });
    }
}

/// The log is being put into the file.
struct Tending(Arc<AtomicBool>);

impl Drop for Tending {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Where the file is, and whose.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) host: Host,
}

impl Place {
    /// The file that goes by the name now, opened anew if there is none yet or another was put there; whether it was.
    pub(crate) fn at_hand<'f>(&self, file: &'f mut Option<File>) -> Result<(&'f mut File, bool), BackendError> {
        match file.take().filter(File::is_in_place) {
            Some(open) => Ok((file.insert(open), false)),
            None => Ok((file.insert(File::open(&self.path, &self.host)?), true)),
        }
    }
}

/// What the file is used with, by one at a time.
#[derive(Debug)]
pub(crate) struct Desk {
    place: Place,
    file: Option<File>,
    watcher: Arc<Watcher>,
    /// Changes since the log was looked at.
    untended: u32,
    /// Until then callers do nothing themselves, since it took long.
    slow_until: Option<Instant>,
}

/// After so many changes the thread looks whether the log is long.
const TENDED_AFTER: u32 = 256;
/// Before a log is tended again that could not be.
const PAUSE: Duration = Duration::from_millis(100);
/// A change that takes so long met a disk that keeps writers waiting, though nothing is forced to it; losing the core takes less. No caller's time is spent on that again for a while.
const SLOW: Duration = Duration::from_millis(50);
const SLOW_FOR: Duration = Duration::from_secs(1);

impl Desk {
    /// Does a job in its caller's time, unless there is something to wait for.
    fn do_in_haste(&mut self, job: &mut Job) -> Option<Telling> {
        let began = Instant::now();
        if self.slow_until.is_some_and(|until| began < until) {
            return None;
        }
        let done = self.run(job, true);
        if began.elapsed() >= SLOW {
            self.slow_until = Some(began + SLOW + SLOW_FOR);
        }
        done
    }

    /// Does a job. One that panics is done, and its caller hears that its answer was lost.
    fn run(&mut self, job: &mut Job, in_haste: bool) -> Option<Telling> {
        let how = How { answers: job.answers, in_haste };
        let run = catch_unwind(AssertUnwindSafe(|| (job.run)(self, how)));
        run.unwrap_or_else(|_| {
            // Whatever state it was left in.
            self.file = None;
            Some(Box::new(|| ()))
        })
    }

    /// `None` if it was in haste, and put off.
    fn with_file<T>(
        &mut self,
        in_haste: bool,
        work: &mut impl FnMut(&mut File) -> Result<T, BackendError>,
    ) -> Option<Result<T, BackendError>> {
        if in_haste {
            return self.file.as_mut()?.in_haste(work).inspect(|_| self.untended += 1);
        }
        self.untended += 1;
        Some(self.place.at_hand(&mut self.file).and_then(|(file, _)| work(file)))
    }

    fn is_log_due(&mut self) -> bool {
        let is_due = self.untended >= TENDED_AFTER;
        if is_due {
            self.untended = 0;
        }
        is_due
    }
}
