//! What must have happened in some history of every campaign: otherwise the simulation is idle.

use std::fmt;

mod reading;

pub use reading::met;

macro_rules! sometimes {
    ($($(#[doc = $says:literal])+ $name:ident,)+) => {
        /// Something that only happens when things come together, and that a campaign must have met.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Sometimes {
            $($(#[doc = $says])+ $name,)+
        }

        impl Sometimes {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// What happened, in words.
            pub fn says(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($says),+).trim_ascii(),)+
                }
            }
        }
    };
}

sometimes! {
    /// two renewals in a row were not answered
    RenewalUnheardTwice,
    /// a grant lapsed while another waited
    LapsedWhileWaitedFor,
    /// a grant lapsed while its release was under way
    LapsedWhileReleased,
    /// a claim was applied and not answered, and yet held
    ClaimUnheardYetHeld,
    /// a claim was applied after its client had given up
    ClaimAfterGivingUp,
    /// an acquisition was cancelled while its claim was under way
    CancelledWhileClaiming,
    /// a release was sent after the loss was told
    ReleasedAfterLoss,
    /// a release was applied and not answered, and yet known in the end
    ReleaseUnheardYetKnown,
    /// a release was never answered
    ReleaseUnknown,
    /// a client crashed while it held
    CrashedHolding,
    /// a client crashed while it waited
    CrashedWaiting,
    /// a crashed client was granted the lock
    GrantedAfterCrash,
    /// a successor was granted the lock while its predecessor was paused and would not know
    GrantedWhilePaused,
    /// a client was paused between its check and its write
    PausedBeforeWriting,
    /// a client was paused while it waited
    PausedWaiting,
    /// the resource refused a write
    WriteFenced,
    /// a write reached the resource after the loss was told
    WriteAfterLoss,
    /// a claim met the lock-delay
    DelayMet,
    /// an operator ended the session of a holder while another waited
    SessionEndedWhileWaitedFor,
    /// an operator deleted the key while another waited
    KeyDeletedWhileWaitedFor,
    /// an operator released the key while another waited
    ForcedWhileWaitedFor,
    /// a partition lasted longer than the ttl
    LongPartition,
    /// the store answered nobody while somebody held
    OutageWhileHeld,
    /// the store answered nobody while somebody waited
    OutageWhileWaiting,
    /// a claim arrived twice
    ClaimRepeated,
    /// a release arrived twice
    ReleaseRepeated,
    /// a renewal arrived twice
    RenewalRepeated,
    /// an acquisition was refused an answer, and held in the end
    RefusedYetHeld,
    /// a try found the lock busy
    TryFoundBusy,
    /// a try took the lock
    TryHeld,
    /// a waiting client got another session
    SessionReplacedWhileWaiting,
    /// the lock changed hands while three or more waited
    HandoverWithThreeWaiting,
    /// a call was applied after the client had sent the next of its kind
    CallOvertaken,
    /// a client that had lost the lock held it again
    HeldAgainAfterLoss,
}

/// Which of them happened in one history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met(u64);

impl Met {
    /// Whether it happened.
    pub fn has(self, sometimes: Sometimes) -> bool {
        self.0 & (1 << sometimes as u32) != 0
    }

    fn meet(&mut self, sometimes: Sometimes) {
        self.0 |= 1 << sometimes as u32;
    }
}

/// In how many histories each of them happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen([u64; Sometimes::ALL.len()]);

impl Default for Seen {
    fn default() -> Self {
        Self([0; Sometimes::ALL.len()])
    }
}

impl Seen {
    /// Counts one history in.
    pub fn add(&mut self, met: Met) {
        for (count, sometimes) in self.0.iter_mut().zip(Sometimes::ALL) {
            *count += u64::from(met.has(*sometimes));
        }
    }

    /// Counts what others have seen in.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    /// In how many histories it happened.
    pub fn count(&self, sometimes: Sometimes) -> u64 {
        self.0[sometimes as usize]
    }

    /// What never happened.
    pub fn never(&self) -> Vec<Sometimes> {
        Sometimes::ALL.iter().copied().filter(|sometimes| self.count(*sometimes) == 0).collect()
    }
}

/// One line for each, with its count.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sometimes in Sometimes::ALL {
            writeln!(f, "{:>10}  {}", self.count(*sometimes), sometimes.says())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sketch;

    /// Client a holds token 1 and b waits.
    const HELD: &str = "0 a wants 1\n1 a sends claim 1\n2 - applies 1\n2 - grants 1 1\n3 a holds 1 1\n4 b wants 2\n";

    fn met(sketch: &str) -> Vec<Sometimes> {
        let met = super::met(&sketch::plan(), &sketch::history(sketch));
        Sometimes::ALL.iter().copied().filter(|sometimes| met.has(*sometimes)).collect()
    }

    fn after(begin: &str, end: &str) -> Vec<Sometimes> {
        met(&format!("{begin}{end}"))
    }

    #[test]
    fn an_undisturbed_history_meets_nothing() {
        assert_eq!(after(HELD, "5 a releasing 1\n6 - takes-back 1 1\n7 a released 1\n8 - grants 2 2\n9 b holds 2 2"), []);
    }

    #[test]
    fn every_counter_fits_into_one_history() {
        assert!(Sometimes::ALL.len() <= 64);
        assert!(Sometimes::ALL.len() >= 20);
        assert_eq!(Sometimes::TryFoundBusy.says(), "a try found the lock busy");
    }

    #[test]
    fn silence_and_lapse_are_met() {
        use Sometimes as S;
        let renewals = "10 a sends renew 2\n20 a sends renew 3\n30 a sends renew 4\n";
        assert_eq!(after(HELD, renewals), [S::RenewalUnheardTwice]);
        assert_eq!(after(HELD, &renewals.replace("20 a", "15 a answered 2\n20 a")), []);
        assert_eq!(after(HELD, "900 a loses 1\n1000 - lapses 1 1"), [S::LapsedWhileWaitedFor]);
        assert_eq!(after(HELD, "900 a releasing 1\n1000 - lapses 1 1"), [S::LapsedWhileWaitedFor, S::LapsedWhileReleased]);
        assert_eq!(after(HELD, "900 a loses 1\n901 a sends release 7"), [S::ReleasedAfterLoss]);
        assert_eq!(after(HELD, "5 a releasing 1\n9 a unknown 1"), [S::ReleaseUnknown]);
    }

    #[test]
    fn what_became_of_a_claim_is_met() {
        use Sometimes as S;
        let unheard = "0 a wants 1\n1 a sends claim 1\n2 - applies 1\n2 - grants 1 1\n50 a sends claim 2\n52 a holds 1 1";
        assert_eq!(met(unheard), [S::ClaimUnheardYetHeld]);
        let late = "0 a wants 1\n1 a sends claim 1\n5 a cancels 1\n9 - applies 1";
        assert_eq!(met(late), [S::ClaimAfterGivingUp, S::CancelledWhileClaiming]);
        assert_eq!(met("0 a wants 1\n1 a struck claim refuse\n5 - grants 1 1\n9 a holds 1 1"), [S::RefusedYetHeld]);
        assert_eq!(after(HELD, "5 c tries 3\n6 c busy 3"), [S::TryFoundBusy]);
        assert_eq!(met("0 a tries 1\n1 - grants 1 1\n2 a holds 1 1"), [S::TryHeld]);
        let replaced = after(HELD, "5 b sends open 5\n6 b sends open 6");
        assert_eq!(replaced, [S::SessionReplacedWhileWaiting]);
        let overtaken = after(HELD, "5 b sends claim 5\n6 b sends claim 6\n7 - applies 5");
        assert_eq!(overtaken, [S::CallOvertaken]);
    }

    #[test]
    fn crashes_and_pauses_are_met() {
        use Sometimes as S;
        assert_eq!(after(HELD, "5 a crashes"), [S::CrashedHolding]);
        assert_eq!(
            after(HELD, "5 b crashes\n6 a releasing 1\n7 - takes-back 1 1\n7 - grants 2 2"),
            [S::CrashedWaiting, S::GrantedAfterCrash]
        );
        assert_eq!(after(HELD, "5 b struck acquiring pause 10"), [S::PausedWaiting]);
        let paused =
            after(HELD, "5 a struck writing pause 3000\n1000 - lapses 1 1\n1001 - grants 2 2\n3005 a loses 1\n3006 a fenced 1 1");
        let expected = [S::LapsedWhileWaitedFor, S::GrantedWhilePaused, S::PausedBeforeWriting, S::WriteFenced, S::WriteAfterLoss];
        assert_eq!(paused, expected);
    }

    #[test]
    fn operators_and_networks_are_met() {
        use Sometimes as S;
        assert_eq!(after(HELD, "5 a struck holding end-session"), [S::SessionEndedWhileWaitedFor]);
        assert_eq!(after(HELD, "5 a struck holding delete-key"), [S::KeyDeletedWhileWaitedFor]);
        assert_eq!(after(HELD, "5 a struck holding force"), [S::ForcedWhileWaitedFor]);
        assert_eq!(after(HELD, "5 a struck renew partition 1001"), [S::LongPartition]);
        assert_eq!(after(HELD, "5 a struck renew partition 1000"), []);
        assert_eq!(after(HELD, "5 a struck renew outage 10"), [S::OutageWhileHeld, S::OutageWhileWaiting]);
        assert_eq!(after(HELD, "5 a struck claim repeat 10"), [S::ClaimRepeated]);
        assert_eq!(after(HELD, "5 a struck release repeat 10"), [S::ReleaseRepeated]);
        assert_eq!(after(HELD, "5 a struck renew repeat 10"), [S::RenewalRepeated]);
    }

    #[test]
    fn releases_and_handovers_are_met() {
        use Sometimes as S;
        let unheard =
            "5 a releasing 1\n5 a sends release 5\n6 - applies 5\n6 - takes-back 1 1\n50 a sends release 6\n60 a not-held 1";
        assert_eq!(after(HELD, unheard), [S::ReleaseUnheardYetKnown]);
        let crowd = "5 c wants 3\n5 d wants 4\n5 e wants 5\n6 a releasing 1\n7 - takes-back 1 1\n8 - grants 2 2";
        assert_eq!(after(HELD, crowd), [S::HandoverWithThreeWaiting]);
        let again = "900 a loses 1\n1000 - takes-back 1 1\n1001 b cancels 2\n1002 a wants 6\n1003 - grants 6 2\n1004 a holds 6 2";
        assert_eq!(after(HELD, again), [S::HeldAgainAfterLoss]);
        let mut delayed = sketch::plan();
        delayed.config.lock_delay_ms = 500;
        let history = sketch::history(&format!("{HELD}900 a loses 1\n1000 - lapses 1 1\n1001 b sends claim 8\n1100 - applies 8"));
        assert!(super::met(&delayed, &history).has(S::DelayMet));
        assert!(!super::met(&sketch::plan(), &history).has(S::DelayMet));
    }

    #[test]
    fn what_was_never_seen_is_named() {
        let mut seen = Seen::default();
        seen.add(super::met(&sketch::plan(), &sketch::history(&format!("{HELD}5 c tries 3\n6 c busy 3"))));
        let twice = seen.clone();
        seen.merge(&twice);
        assert_eq!(seen.count(Sometimes::TryFoundBusy), 2);
        assert_eq!(seen.never().len(), Sometimes::ALL.len() - 1);
        assert!(seen.to_string().contains("         2  a try found the lock busy"));
    }
}
