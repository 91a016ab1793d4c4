//! Every order of events, within bounds, of clients that run the real machines against the real in-memory store.
//!
//! What is modelled around them: a network that loses, delays and repeats, clients that are paused between any two steps or whose clock
//! runs late, callers that cancel, an operator who interferes, and a resource that checks fencing tokens. Faults have budgets; what has
//! no budget is prompt, so that a walk ends.

mod process;
mod properties;
mod world;

use std::sync::LazyLock;
use std::time::Duration;

use dlock_core::{Key, Place};
use dlock_testkit::memory::{Profile, Rules, Store};
use stateright::{Model, Property};

use crate::machines::Terms;
pub use process::Process;
pub use world::{Event, Message, Operator, World};

/// A walk: the store's profile, how much of what may happen, and a bug to plant.
#[derive(Clone, Debug)]
pub struct Walk {
    profile: Profile,
    bounds: Bounds,
    bug: Option<Bug>,
}

/// How often each thing may happen in one walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Acquisitions of each client.
    pub wants: [u8; 2],
    /// Requests or replies that never arrive.
    pub lost: u8,
    /// Requests or replies that take any time.
    pub slow: u8,
    /// Requests that arrive twice, the second time at any time.
    pub repeated: u8,
    /// Clients that stop between two steps, for any time.
    pub pauses: u8,
    /// Clients whose clock falls behind by as much as the margin allows.
    pub drifts: u8,
    /// Acquisitions that are cancelled.
    pub cancels: u8,
    /// Interventions of an operator.
    pub interventions: u8,
    /// Writes to the protected resource.
    pub writes: u8,
    /// What a claim does when the key is taken.
    pub place: Place,
    /// Until when it goes on.
    pub horizon: Duration,
}

impl Bounds {
    /// Two clients, one acquisition each, and nothing that goes wrong.
    pub const CALM: Self = Self {
        wants: [1, 1],
        lost: 0,
        slow: 0,
        repeated: 0,
        pauses: 0,
        drifts: 0,
        cancels: 0,
        interventions: 0,
        writes: 0,
        place: Place::Queue,
        horizon: Duration::from_millis(1_300),
    };
}

/// A mistake that lock libraries make, planted in the model around the machines to show that a walk finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Belief counts from when the reply came, not from when the request was sent.
    DeadlineFromReply,
    /// Belief lasts as long as the ttl, with no margin for a clock that is behind.
    NoMargin,
    /// A release of what the store does not have leaves no trace.
    UnfencedRelease,
    /// A release frees whatever the session holds, not what the claim holds.
    ReleaseBySession,
    /// What a cancelled acquisition sent is not undone.
    CancelWithoutUndo,
    /// "Busy" is taken for proof that no copy of the claim is under way.
    BusyMeansNothingOwed,
    /// A release is taken for a fence although a copy of the claim was guarded by nothing but the key's absence.
    TrustsAbsence,
    /// An acquisition that awaits a session is not told when it is open.
    LostWakeUp,
    /// The resource does not look at tokens.
    NoFence,
}

impl Walk {
    /// A walk on a store with this profile.
    pub fn new(profile: Profile, bounds: Bounds) -> Self {
        Self { profile, bounds, bug: None }
    }

    /// The same walk with a mistake in it.
    #[must_use]
    pub fn with(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }
}

/// The ttl of every session.
pub(crate) const TTL: Duration = Duration::from_millis(600);
/// As much as the margin allows.
pub(crate) const DRIFT: Duration = dlock_core::Lease::LEAST_MARGIN;

/// What all clients are set to. They neither audit nor watch: interference is mended by the token alone.
static TERMS: LazyLock<Terms> = LazyLock::new(|| Terms {
    key: Key::new("k").unwrap_or_else(|invalid| unreachable!("{invalid}")),
    ttl: TTL,
    lapses_within_ttls: 1,
    attempt: Duration::from_millis(100),
    patience: Duration::from_millis(250),
    longest_wait: Duration::from_secs(60),
    watches: false,
});

impl Model for Walk {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        // The earliest expiry that a store may choose, which is the hardest on belief.
        let rules = Rules { profile: self.profile, lapses_after_percent: 100, lock_delay: Duration::ZERO };
        vec![World::new(Store::new(rules), self.bounds, self.bug)]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        world.events(events);
    }

    fn next_state(&self, world: &World, event: Event) -> Option<World> {
        let mut world = world.clone();
        world.happen(event);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self.bounds)
    }
}
