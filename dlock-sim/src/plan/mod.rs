//! What a run is: its configuration, and what goes wrong in it.
//!
//! A fault is addressed by its [`Slot`]: the n-th time that a client comes to a site. Whether one strikes there is drawn from a hash of seed
//! and slot, so that taking one fault out of a plan moves no other. A run records what struck; that record replays without the seed.

use std::time::Duration;

use dlock_core::Chance;
use dlock_testkit::memory::Profile;
use serde::{Deserialize, Serialize};

mod fault;
mod tenancy;
mod weather;

pub use fault::{Fault, FaultKind, Site};
pub use tenancy::Tenancy;
pub use weather::Weather;

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
    /// The same with keys that are shared, permits, and several keys at once: see [`Tenancy`].
    Beside,
    /// The real `Locker` on the real Consul client, against a fake server over a simulated network.
    Wire,
    /// The same with clients in fair mode.
    WireFair,
    /// The real `Locker` on the unmodified etcd-client, against a fake server over a simulated network.
    WireEtcd,
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
    /// How many calls of a client are in flight at a time; as many as there are if it is zero. To the pure machines it only says whether calls are queued.
    #[serde(default)]
    pub calls_in_flight: u8,
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

impl Plan {
    /// The plan of a seed: another swarm configuration for each.
    pub fn of_seed(tier: Tier, seed: u64) -> Self {
        let draw = |what: u64, below: u32| (hash(&[seed, 0xC0, what]) % u64::from(below.max(1))) as u32;
        let between = |what: u64, from: u32, to: u32| from + draw(what, to - from + 1);
        // Leases live for whole seconds.
        let shortest = if tier == Tier::WireEtcd { 2_000 } else { 300 };
        let ttl_ms = [shortest, 1_000, 3_000, 15_000][draw(0, 4) as usize];
        // The margin is 1 %, at least 50 ms; inside it, belief must be true.
        let margin_ppm = (50_000_000 / u64::from(ttl_ms)).max(10_000) as u32;
        let kinds = FaultKind::ALL.into_iter().enumerate();
        let kinds = kinds.filter(|(n, _)| draw(100 + *n as u64, 2) == 0).map(|(_, kind)| kind);
        let queue = if draw(14, 2) == 0 { Profile::Line } else { Profile::Queue };
        // There, nobody is excused.
        let excused = |kind: &FaultKind| tier == Tier::Beside && FaultKind::EXCUSE.contains(kind);
        let kinds = kinds.filter(|kind| !excused(kind)).collect();
        Self {
            tier,
            config: Config {
                seed,
                // A store behind Consul's client is like Consul, and one behind etcd's like etcd.
                profile: match tier {
                    Tier::WireEtcd => Profile::Queue,
                    Tier::WireFair => Profile::Line,
                    // No slot is shared.
                    Tier::Beside if !matches!(Tenancy::of_seed(seed), Tenancy::Several(_)) => queue,
                    Tier::Machines | Tier::Locker | Tier::Beside if draw(1, 2) == 0 => queue,
                    Tier::Machines | Tier::Locker | Tier::Beside | Tier::Wire => Profile::Slot,
                },
                clients: between(2, 2, 5) as u8,
                rounds: between(3, 1, 6) as u8,
                ttl_ms,
                // Half of the stores are as strict as they may be.
                lapses_after_percent: if draw(13, 2) == 0 { 100 } else { between(4, 100, 200) },
                lock_delay_ms: if draw(5, 4) == 0 && tier != Tier::WireEtcd { draw(6, ttl_ms) } else { 0 },
                latency_ms: between(7, 1, (ttl_ms / 30).max(1)),
                hold_ms: between(8, 1, ttl_ms * 2),
                tries_percent: [0, 0, 20, 100][draw(9, 4) as usize],
                drift_ppm: draw(10, margin_ppm * 9 / 10),
                // Queues are for the locker's own simulators; the wire's clients say what they send.
                calls_in_flight: if matches!(tier, Tier::Machines | Tier::Locker | Tier::Beside) { draw(14, 3) as u8 } else { 0 },
                jitter: true,
            },
            faults: Faults::Drawn { seed, per_mille: [0, 10, 50, 200][draw(11, 4) as usize], budget: between(12, 0, 8), kinds },
        }
    }

    /// What clients want in it; `None` where it is one lock.
    pub fn tenancy(&self) -> Option<Tenancy> {
        (self.tier == Tier::Beside).then(|| Tenancy::of_seed(self.config.seed))
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
            Profile::Line => "line",
            Profile::Slot => "slot",
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Profile, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "queue" => Ok(Profile::Queue),
            "line" => Ok(Profile::Line),
            "slot" => Ok(Profile::Slot),
            other => Err(serde::de::Error::custom(format!("unknown profile {other:?}; known are queue, line and slot"))),
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
