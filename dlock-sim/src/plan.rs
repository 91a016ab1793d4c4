//! What a run is: its configuration, and what goes wrong in it.
//!
//! A fault is addressed by its [`Slot`]: the n-th time that a client comes to a site. Whether one strikes there is drawn from a hash of seed
//! and slot, so that taking one fault out of a plan moves no other. A run records what struck; that record replays without the seed.

use std::collections::BTreeMap;
use std::time::Duration;

use dlock_core::Chance;
use dlock_testkit::memory::Profile;
use serde::{Deserialize, Serialize};

/// Everything that decides a run. The same plan is the same history, to the byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Which simulator runs it.
    pub tier: Tier,
    /// What stays the same over the run.
    pub config: Config,
    /// What goes wrong, and where.
    pub faults: Faults,
}

/// A simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The pure machines under an event queue.
    Machines,
    /// The real `Locker` on the in-memory store in virtual time.
    Locker,
    /// The real `Locker` on a real backend's client, against a fake server over a simulated network.
    Wire,
}

/// What stays the same over a run. Swarm configuration: every seed draws another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Draws everything that is not a fault: latencies, jitter, workload.
    pub seed: u64,
    /// What the store is like.
    #[serde(with = "profile")]
    pub profile: Profile,
    /// How many clients contend.
    pub clients: u8,
    /// How many acquisitions each of them makes.
    pub rounds: u8,
    /// The ttl of every session.
    pub ttl_ms: u32,
    /// After how much of its ttl a silent session lapses at the store, 100 to 200.
    pub lapses_after_percent: u32,
    /// How long a key is granted to nobody after its holder's session ended.
    pub lock_delay_ms: u32,
    /// The longest that an undisturbed message is under way.
    pub latency_ms: u32,
    /// How long a lock is held at most.
    pub hold_ms: u32,
    /// How much of the acquisitions only try, in percent.
    pub tries_percent: u32,
    /// The bound on how much slower a client's clock may run than true time, in parts per million; inside what the margin allows.
    pub drift_ppm: u32,
    /// Whether latencies and pauses vary; shrinking switches it off.
    pub jitter: bool,
}

/// Where faults come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Faults {
    /// Drawn while it runs.
    Drawn {
        /// Of the draws.
        seed: u64,
        /// How often a fault strikes where one could, in a thousand.
        per_mille: u32,
        /// How many strike at most.
        budget: u32,
        /// The kinds that may.
        kinds: Vec<FaultKind>,
    },
    /// These and no others.
    Listed(Vec<Struck>),
}

/// A fault that struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Struck {
    /// Where.
    pub slot: Slot,
    /// What.
    pub fault: Fault,
}

/// The n-th time that a client comes to a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// The site.
    pub site: Site,
    /// The client.
    pub client: u8,
    /// From zero.
    pub nth: u32,
}

/// A place in a client's life where something can go wrong: its calls to the store, and the moments between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the calls are those of that name
pub enum Site {
    Open,
    Renew,
    Audit,
    Close,
    Claim,
    Wait,
    Confirm,
    Release,
    Disturbed,
    /// While it acquires.
    Acquiring,
    /// While it holds.
    Holding,
    /// Between its check that it holds the lock, and its write.
    Writing,
}

impl Site {
    const COUNT: usize = Self::Writing as usize + 1;

    /// Whether it is a call to the store.
    pub fn is_call(self) -> bool {
        !matches!(self, Self::Acquiring | Self::Holding | Self::Writing)
    }

    /// What can strike here.
    pub fn allows(self, kind: FaultKind) -> bool {
        use FaultKind as K;
        match kind {
            K::LoseRequest | K::LoseReply | K::DelayRequest | K::DelayReply | K::Refuse | K::Partition | K::Outage => {
                self.is_call()
            }
            // Reads change nothing when they arrive twice.
            K::Repeat => matches!(self, Self::Open | Self::Renew | Self::Close | Self::Claim | Self::Release),
            K::Pause | K::Crash => !self.is_call(),
            K::Cancel => self == Self::Acquiring,
            K::EndSession | K::DeleteKey | K::ReleaseByForce => self == Self::Holding,
        }
    }
}

/// Something that goes wrong. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request never arrives.
    LoseRequest,
    /// The request is applied, its reply never arrives.
    LoseReply,
    /// The request is under way so much longer, whether or not its sender still waits.
    DelayRequest(u32),
    /// The reply is under way so much longer.
    DelayReply(u32),
    /// The request arrives twice, the second time so much later.
    Repeat(u32),
    /// The store refuses to answer this one; not applied.
    Refuse,
    /// From this call on, nothing passes between this client and the store for so long.
    Partition(u32),
    /// From this call on, the store answers nobody for so long. What it keeps stays, and sessions get their whole ttl again.
    Outage(u32),
    /// The client makes no step for so long; its clock goes on.
    Pause(u32),
    /// The client ends without giving anything back.
    Crash,
    /// The acquisition is dropped after so many milliseconds.
    Cancel(u32),
    /// An operator ends the session.
    EndSession,
    /// An operator deletes the key.
    DeleteKey,
    /// An operator releases the key.
    ReleaseByForce,
}

/// A [`Fault`] without its measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // as in Fault
pub enum FaultKind {
    LoseRequest,
    LoseReply,
    DelayRequest,
    DelayReply,
    Repeat,
    Refuse,
    Partition,
    Outage,
    Pause,
    Crash,
    Cancel,
    EndSession,
    DeleteKey,
    ReleaseByForce,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::LoseRequest,
        Self::LoseReply,
        Self::DelayRequest,
        Self::DelayReply,
        Self::Repeat,
        Self::Refuse,
        Self::Partition,
        Self::Outage,
        Self::Pause,
        Self::Crash,
        Self::Cancel,
        Self::EndSession,
        Self::DeleteKey,
        Self::ReleaseByForce,
    ];

    /// The fault of this kind with a measure drawn up to three ttl.
    fn drawn(self, bits: u64, ttl_ms: u32) -> Fault {
        // Short ones are as interesting as long ones: half of them stay below an eighth of a ttl.
        let longest = if bits & 1 == 0 { ttl_ms / 8 } else { ttl_ms * 3 };
        let measure = 1 + ((bits >> 1) % u64::from(longest.max(1))) as u32;
        match self {
            Self::LoseRequest => Fault::LoseRequest,
            Self::LoseReply => Fault::LoseReply,
            Self::DelayRequest => Fault::DelayRequest(measure),
            Self::DelayReply => Fault::DelayReply(measure),
            Self::Repeat => Fault::Repeat(measure),
            Self::Refuse => Fault::Refuse,
            Self::Partition => Fault::Partition(measure),
            Self::Outage => Fault::Outage(measure),
            Self::Pause => Fault::Pause(measure),
            Self::Crash => Fault::Crash,
            Self::Cancel => Fault::Cancel(measure),
            Self::EndSession => Fault::EndSession,
            Self::DeleteKey => Fault::DeleteKey,
            Self::ReleaseByForce => Fault::ReleaseByForce,
        }
    }
}

impl Fault {
    /// What somebody did to the lock itself: belief may be false until it is heard of.
    pub fn is_interference(self) -> bool {
        matches!(self, Self::EndSession | Self::DeleteKey | Self::ReleaseByForce)
    }

    /// The same fault with another measure; `None` where there is none.
    #[must_use]
    pub fn measured(self, millis: u32) -> Option<Self> {
        Some(match self {
            Self::DelayRequest(_) => Self::DelayRequest(millis),
            Self::DelayReply(_) => Self::DelayReply(millis),
            Self::Repeat(_) => Self::Repeat(millis),
            Self::Partition(_) => Self::Partition(millis),
            Self::Outage(_) => Self::Outage(millis),
            Self::Pause(_) => Self::Pause(millis),
            Self::Cancel(_) => Self::Cancel(millis),
            _ => return None,
        })
    }

    /// Its measure in milliseconds, where it has one.
    pub fn measure(self) -> Option<u32> {
        match self {
            Self::DelayRequest(millis)
            | Self::DelayReply(millis)
            | Self::Repeat(millis)
            | Self::Partition(millis)
            | Self::Outage(millis)
            | Self::Pause(millis)
            | Self::Cancel(millis) => Some(millis),
            _ => None,
        }
    }
}

impl Plan {
    /// The plan of a seed: another swarm configuration for each.
    pub fn of_seed(tier: Tier, seed: u64) -> Self {
        let draw = |what: u64, below: u32| (hash(&[seed, 0xC0, what]) % u64::from(below.max(1))) as u32;
        let between = |what: u64, from: u32, to: u32| from + draw(what, to - from + 1);
        let ttl_ms = [300, 1_000, 3_000, 15_000][draw(0, 4) as usize];
        // The margin is 1 %, at least 50 ms; inside it, belief must be true.
        let margin_ppm = (50_000_000 / u64::from(ttl_ms)).max(10_000) as u32;
        let kinds = FaultKind::ALL.into_iter().enumerate();
        let kinds = kinds.filter(|(n, _)| draw(100 + *n as u64, 2) == 0).map(|(_, kind)| kind).collect();
        Self {
            tier,
            config: Config {
                seed,
                // A store behind Consul's client is like Consul.
                profile: if draw(1, 2) == 0 && tier != Tier::Wire { Profile::Queue } else { Profile::Slot },
                clients: between(2, 2, 5) as u8,
                rounds: between(3, 1, 6) as u8,
                ttl_ms,
                // Half of the stores are as strict as they may be.
                lapses_after_percent: if draw(13, 2) == 0 { 100 } else { between(4, 100, 200) },
                lock_delay_ms: if draw(5, 4) == 0 { draw(6, ttl_ms) } else { 0 },
                latency_ms: between(7, 1, (ttl_ms / 30).max(1)),
                hold_ms: between(8, 1, ttl_ms * 2),
                tries_percent: [0, 0, 20, 100][draw(9, 4) as usize],
                drift_ppm: draw(10, margin_ppm * 9 / 10),
                jitter: true,
            },
            faults: Faults::Drawn { seed, per_mille: [0, 10, 50, 200][draw(11, 4) as usize], budget: between(12, 0, 8), kinds },
        }
    }

    /// The same run with exactly these faults.
    #[must_use]
    pub fn with_faults(&self, faults: Vec<Struck>) -> Self {
        Self { faults: Faults::Listed(faults), ..self.clone() }
    }

    /// The faults that are listed; none while they are still to be drawn.
    pub fn listed(&self) -> &[Struck] {
        match &self.faults {
            Faults::Listed(faults) => faults,
            Faults::Drawn { .. } => &[],
        }
    }
}

impl Config {
    /// The ttl of every session.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms.into())
    }

    /// A draw for anything but faults, named by what it is for.
    pub fn draw(&self, what: &[u64]) -> u64 {
        mix(hash(&[self.seed, 0xD0]), what)
    }

    /// A draw as the machines take it; in the middle once jitter is off.
    pub fn chance(&self, what: &[u64]) -> Chance {
        if self.jitter { Chance((self.draw(what) >> 32) as u32) } else { Chance::MIDDLE }
    }

    /// How long an undisturbed message is under way.
    pub fn latency(&self, what: &[u64]) -> Duration {
        let longest = u64::from(self.latency_ms) * 1_000;
        Duration::from_micros(if self.jitter { 1 + self.draw(what) % longest.max(1) } else { longest / 2 + 1 })
    }
}

/// Decides where faults strike while a run goes on, and keeps record.
#[derive(Clone, Debug)]
pub struct Weather {
    faults: Faults,
    listed: BTreeMap<Slot, Fault>,
    ttl_ms: u32,
    /// Of each client, at each site.
    visits: Vec<[u32; Site::COUNT]>,
    struck: Vec<Struck>,
}

impl Weather {
    /// The weather of a plan.
    pub fn of(plan: &Plan) -> Self {
        Self {
            listed: plan.listed().iter().map(|struck| (struck.slot, struck.fault)).collect(),
            faults: plan.faults.clone(),
            ttl_ms: plan.config.ttl_ms,
            visits: vec![[0; Site::COUNT]; plan.config.clients.into()],
            struck: Vec::new(),
        }
    }

    /// A client comes to a site: the slot, and what strikes there. To be called exactly once for each visit.
    pub fn visit(&mut self, site: Site, client: u8) -> (Slot, Option<Fault>) {
        if self.visits.len() <= client.into() {
            self.visits.resize(usize::from(client) + 1, [0; Site::COUNT]);
        }
        let visits = &mut self.visits[usize::from(client)][site as usize];
        let slot = Slot { site, client, nth: *visits };
        *visits += 1;
        let fault = match &self.faults {
            Faults::Listed(_) => self.listed.get(&slot).copied(),
            Faults::Drawn { seed, per_mille, budget, kinds } if self.struck.len() < *budget as usize => {
                let bits = hash(&[*seed, 0xF0, site as u64, client.into(), slot.nth.into()]);
                let strikes = (bits % 1_000) < u64::from(*per_mille);
                let allowed: Vec<_> = kinds.iter().copied().filter(|kind| strikes && site.allows(*kind)).collect();
                (!allowed.is_empty()).then(|| allowed[(bits >> 10) as usize % allowed.len()].drawn(bits >> 32, self.ttl_ms))
            }
            Faults::Drawn { .. } => None,
        };
        if let Some(fault) = fault {
            self.struck.push(Struck { slot, fault });
        }
        (slot, fault)
    }

    /// Everything that struck so far.
    pub fn struck(&self) -> &[Struck] {
        &self.struck
    }

    /// Nothing strikes any more: what is left of the run must end well.
    pub fn calm_down(&mut self) {
        self.faults = Faults::Listed(Vec::new());
        self.listed.clear();
    }
}

/// What people call a client: a, b, c.
pub fn name(client: u8) -> String {
    match client {
        0..26 => char::from(b'a' + client).to_string(),
        more => more.to_string(),
    }
}

/// A hash that is the same on every machine and in every version: the finalizer of splitmix64, chained.
pub fn hash(words: &[u64]) -> u64 {
    mix(0x9E37_79B9_7F4A_7C15, words)
}

fn mix(state: u64, words: &[u64]) -> u64 {
    words.iter().fold(state, |state, word| {
        let mut mixed = (state ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}

mod profile {
    use dlock_testkit::memory::Profile;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(super) fn serialize<S: Serializer>(profile: &Profile, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match profile {
            Profile::Queue => "queue",
            Profile::Slot => "slot",
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Profile, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "queue" => Ok(Profile::Queue),
            "slot" => Ok(Profile::Slot),
            other => Err(serde::de::Error::custom(format!("unknown profile {other:?}; known are queue and slot"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storm(seed: u64) -> Plan {
        let mut plan = Plan::of_seed(Tier::Machines, seed);
        plan.faults = Faults::Drawn { seed, per_mille: 300, budget: 100, kinds: FaultKind::ALL.to_vec() };
        plan
    }

    fn blow(plan: &Plan) -> Vec<Struck> {
        let mut weather = Weather::of(plan);
        for _ in 0..10 {
            for client in 0..3 {
                weather.visit(Site::Claim, client);
                weather.visit(Site::Holding, client);
            }
        }
        weather.struck().to_vec()
    }

    #[test]
    fn what_struck_replays_without_the_seed() {
        let plan = storm(7);
        let struck = blow(&plan);
        assert!(!struck.is_empty());
        assert_eq!(blow(&plan.with_faults(struck.clone())), struck);
    }

    #[test]
    fn taking_a_fault_away_moves_no_other() {
        let plan = storm(7);
        let mut struck = blow(&plan);
        struck.remove(1);
        assert_eq!(blow(&plan.with_faults(struck.clone())), struck);
    }

    #[test]
    fn a_plan_survives_being_written_down() {
        let plan = storm(3).with_faults(blow(&storm(3)));
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan, "{text}");
    }

    #[test]
    fn only_what_can_strike_at_a_site_does() {
        for seed in 0..50 {
            for Struck { slot, fault } in blow(&storm(seed)) {
                let calls = matches!(fault, Fault::LoseReply | Fault::LoseRequest | Fault::Repeat(_) | Fault::Refuse);
                assert!(!calls || slot.site.is_call(), "{slot:?} {fault:?}");
            }
        }
    }
}
