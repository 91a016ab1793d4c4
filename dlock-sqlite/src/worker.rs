//! The thread that has the file: calls hand it what is to be done, and await the answer, so that SQLite never blocks a runtime.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use dlock_core::{BackendError, ErrorKind};
use tokio::sync::oneshot;

use crate::file::File;
use crate::host::Host;
use crate::watcher::Watcher;
use crate::wire::{Request, Sent, Wire};

/// What is to be done with the file.
pub(crate) struct Job {
    run: Work,
    /// Whether the caller hears of it.
    pub(crate) answers: bool,
}

/// Does a job, and answers if it is to.
type Work = Box<dyn FnOnce(&mut Desk, bool) + Send>;

/// Where jobs are handed in.
///
/// The thread does them one by one, in the order in which they arrive, and ends when the last of its callers is gone. Nobody waits for that.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: Sender<Job>,
    wire: Arc<dyn Wire>,
}

impl Worker {
    /// Starts the thread; the file is opened by its first job.
    pub(crate) fn start(place: Place, watcher: Arc<Watcher>, wire: Arc<dyn Wire>) -> std::io::Result<Self> {
        let (jobs, handed_in) = channel();
        let desk = Desk { place, file: None, watcher };
        std::thread::Builder::new().name("dlock-sqlite".to_owned()).spawn(move || desk.work(&handed_in))?;
        Ok(Self { jobs, wire })
    }

    /// Has something done with the file.
    ///
    /// Dropped, a call that is still under way is done all the same, unless all it could do is to take something or to look: nobody would know of it.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        sent: Sent,
        work: impl FnOnce(&mut File) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (tell, told) = oneshot::channel();
        let run = move |desk: &mut Desk, answers: bool| {
            if tell.is_closed() && matches!(sent, Sent::Claim | Sent::Look) {
                return;
            }
            let answer = desk.with_file(work);
            if answers {
                // Nobody awaits it any more: then it is found out or undone.
                _ = tell.send(answer);
            }
        };
        let job = Job { run: Box::new(run), answers: true };
        self.wire.send(Request { sent, job, jobs: self.jobs.clone() });
        let lost = |_| BackendError::new(ErrorKind::Ambiguous, "the request or its reply was lost on the way to the file of locks");
        told.await.map_err(lost)?
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

/// What the thread has.
pub(crate) struct Desk {
    place: Place,
    file: Option<File>,
    watcher: Arc<Watcher>,
}

impl Desk {
    fn work(mut self, handed_in: &Receiver<Job>) {
        while let Ok(job) = handed_in.recv() {
            (job.run)(&mut self, job.answers);
        }
    }

    fn with_file<T>(&mut self, work: impl FnOnce(&mut File) -> Result<T, BackendError>) -> Result<T, BackendError> {
        let (file, _) = self.place.at_hand(&mut self.file)?;
        let before = file.changes();
        let answer = work(file);
        if file.changes() != before {
            self.watcher.nudge();
        }
        answer
    }
}
