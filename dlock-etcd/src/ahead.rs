//! Who is ahead of a claim in the line of its key, and whether they leave room for it.

use dlock_core::{BackendError, Claim, ErrorKind, Key, Mode, Room};
use etcd_client::SortOrder;

use crate::api::{Found, PAGE, Seam, by_creation, unexpected};
use crate::classify::Asked;
use crate::line::Shared;
use crate::wire::Entry;

/// So much of the line is shown at once: those who wait for longer names may stand in between.
const WINDOW: i64 = 8;

/// Those ahead of an entry, as far as that matters to it.
pub(crate) struct Ahead {
    /// Of these one must go before the claim can hold; none where there is room for it.
    pub(crate) awaited: Vec<Vec<u8>>,
    /// How many there are, where that is known.
    pub(crate) count: Option<u32>,
    /// The first in line, where it was shown.
    pub(crate) first: Option<Entry>,
}

impl Ahead {
    pub(crate) fn nobody() -> Self {
        Self { awaited: Vec::new(), count: None, first: None }
    }
}

/// How much of the line a claim of this mode is shown at once.
pub(crate) fn window(mode: Mode) -> i64 {
    match mode {
        Mode::Permits(all) => i64::from(all.get()).clamp(WINDOW, PAGE),
        Mode::Shared => PAGE,
        _ => WINDOW,
    }
}

impl Shared {
    /// Who is ahead of an entry, by what was shown of the line, the nearest first; looks further where that does not decide.
    ///
    /// `last` says that nobody stands in it but those ahead.
    pub(crate) async fn ahead(&self, claim: &Claim, nearest: Found, first: Found, last: bool) -> Result<Ahead, BackendError> {
        let line = self.layout.line(&claim.key);
        let asked = self.asked("looking for the place in line", false, &claim.key);
        let in_line = |entry: &Entry| entry.is_in(&line.start);
        // Those who wait for longer names may stand in between.
        let straight = nearest.entries.iter().all(in_line).then_some(nearest.count).filter(|_| last);
        let (mut ahead, mut page, mut seam) = (Vec::<Entry>::new(), nearest, Seam::default());
        let (awaited, more) = loop {
            let oldest = seam.join(asked, &mut page)?;
            ahead.extend(page.entries.into_iter().filter(in_line));
            let modes = ahead.iter().map(|entry| (entry.key.clone(), entry.mode()));
            match (claim.mode.room(modes), oldest) {
                (Room::Wanting(awaited), more) => break (awaited, more.is_some()),
                (Room::Enough, None) => break (Vec::new(), false),
                (Room::Enough, Some(oldest)) => {
                    let before = by_creation(&line.end, SortOrder::Descend, PAGE).with_max_create_revision(oldest).with_keys_only();
                    page = self.api.page(asked, &line.start, before).await?.map_err(|gone| unexpected(asked, gone))?.found;
                }
            }
        };
        let count = if more { straight } else { i64::try_from(ahead.len()).ok() };
        let head = match claim.mode {
            // Whose number counts is worth another look.
            Mode::Permits(_) if more => self.head(&claim.key, first).await?,
            _ => first.entries.into_iter().find(in_line),
        };
        for entry in ahead.iter().chain(&head) {
            no_conflict(&claim.key, entry)?;
        }
        let first = ahead.last().filter(|_| !more).or(head.as_ref()).map(Entry::mode);
        if let Some(holders) = first.filter(|first| !awaited.is_empty() && claim.mode.contradicts(*first)) {
            return Err(BackendError::contradiction(claim, holders));
        }
        let shown = ahead.pop().filter(|_| !more);
        Ok(Ahead { awaited, count: count.and_then(|count| count.try_into().ok()), first: head.or(shown) })
    }

    /// The first in line, with what it published.
    pub(crate) async fn first(&self, key: &Key) -> Result<Option<Entry>, BackendError> {
        let line = self.layout.line(key);
        let asked = self.asked("looking for the first in line", false, key);
        let first = by_creation(&line.end, SortOrder::Ascend, 1);
        let page = self.api.page(asked, &line.start, first).await?.map_err(|gone| unexpected(asked, gone))?;
        self.head(key, page.found).await
    }

    /// A whole range in the order of creation, page by page as of one revision.
    pub(crate) async fn read_all(
        &self,
        asked: Asked<'_>,
        start: &[u8],
        end: &[u8],
        order: SortOrder,
    ) -> Result<Vec<Entry>, BackendError> {
        let (mut all, mut revision, mut seam, mut from) = (Vec::<Entry>::new(), 0, Seam::default(), 0);
        loop {
            let options = by_creation(end, order, PAGE).with_revision(revision).with_min_create_revision(from);
            let Ok(mut page) = self.api.page(asked, start, options).await? else {
                let message = format!("{}: etcd forgot what was being read (compaction)", asked.what);
                return Err(BackendError::new(ErrorKind::Transient, message));
            };
            let next = seam.join(asked, &mut page.found)?;
            all.extend(page.found.entries);
            match next {
                Some(next) => from = next,
                None => return Ok(all),
            }
            revision = if revision == 0 { page.revision } else { revision };
        }
    }

    /// The first in line, of a range that was read from its beginning, the oldest first; reads on where it was not shown.
    pub(crate) async fn head(&self, key: &Key, found: Found) -> Result<Option<Entry>, BackendError> {
        let line = self.layout.line(key);
        let asked = self.asked("looking for the first in line", false, key);
        let (mut found, mut seam) = (found, Seam::default());
        loop {
            let last = seam.join(asked, &mut found)?;
            if let Some(first) = found.entries.into_iter().find(|entry| entry.is_in(&line.start)) {
                return Ok(Some(first));
            }
            let Some(last) = last else { return Ok(None) };
            let from = by_creation(&line.end, SortOrder::Ascend, PAGE).with_min_create_revision(last).with_keys_only();
            found = self.api.page(asked, &line.start, from).await?.map_err(|gone| unexpected(asked, gone))?.found;
        }
    }
}

/// An entry without a lease never goes away by itself: it is no claim, and whoever put it there wants something else.
pub(crate) fn no_conflict(key: &Key, entry: &Entry) -> Result<(), BackendError> {
    if entry.lease != 0 { Ok(()) } else { Err(foreign(key, entry)) }
}

/// Something stands in a line that no claim made.
pub(crate) fn foreign(key: &Key, entry: &Entry) -> BackendError {
    let what = if entry.lease == 0 { "has no lease and never lapses" } else { "has another lease than its name says" };
    let message =
        format!("{key} holds something that is no lock: {:?} {what}; it was left alone", String::from_utf8_lossy(&entry.key));
    BackendError::new(ErrorKind::Conflict, message)
}
