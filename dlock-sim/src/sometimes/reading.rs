//! Reading a history for what happened in it.

use super::{Met, Sometimes};
use crate::check::ledger::{Acquisition, Ledger, Stage};
use crate::history::{End, Event, History, Line, Outcome, Refusal};
use crate::plan::{Fault, Plan, Site};

/// What happened in a history.
pub fn met(plan: &Plan, history: &History) -> Met {
    let mut reading = Reading { met: Met::default(), ledger: Ledger::default(), clients: Vec::new(), latest: Vec::new() };
    for (n, line) in history.lines().iter().enumerate() {
        reading.see(plan, line);
        reading.ledger.take(n, line);
    }
    reading.met
}

struct Reading {
    met: Met,
    ledger: Ledger,
    clients: Vec<Memory>,
    /// The last call of a site and client.
    latest: Vec<(Site, u8, u32)>,
}

/// What these counters remember of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    renewals_unheard: u32,
    renewal: Option<u32>,
    claim: Option<u32>,
    release: Option<u32>,
    /// Calls that were refused to the acquisition it is making.
    refusals: u32,
    /// A claim, a release that was applied, and not answered before the next.
    claim_unheard: bool,
    release_unheard: bool,
    losses: u32,
    owes_since_loss: bool,
}

impl Reading {
    fn see(&mut self, plan: &Plan, line: &Line) {
        use Sometimes as S;
        let client = line.client.unwrap_or_default();
        match line.event {
            Event::Wants { .. } => {
                let memory = self.memory(client);
                (memory.refusals, memory.claim_unheard, memory.release_unheard) = (0, false, false);
            }
            Event::Held { op, .. } => {
                let tries = self.ledger.acquisitions.get(op).tries;
                let memory = *self.memory(client);
                self.meet_if(tries, S::TryHeld);
                self.meet_if(memory.claim_unheard, S::ClaimUnheardYetHeld);
                self.meet_if(memory.refusals > 0, S::RefusedYetHeld);
                self.meet_if(memory.losses > 0, S::HeldAgainAfterLoss);
            }
            Event::Refused { why, .. } => {
                let claiming = self.memory(client).claim.is_some_and(|call| !self.ledger.calls.get(call).answered);
                self.meet_if(why == Refusal::Busy, S::TryFoundBusy);
                self.meet_if(why == Refusal::Cancelled && claiming, S::CancelledWhileClaiming);
            }
            Event::Lost { .. } => {
                let memory = self.memory(client);
                memory.losses += 1;
                memory.owes_since_loss = true;
            }
            Event::Releasing { .. } => self.memory(client).owes_since_loss = false,
            Event::Released { outcome, .. } => {
                let unheard = self.memory(client).release_unheard;
                self.meet_if(outcome == Outcome::Unknown, S::ReleaseUnknown);
                self.meet_if(unheard && outcome != Outcome::Unknown, S::ReleaseUnheardYetKnown);
            }
            Event::Crashed => {
                self.meet_if(self.any(client, |acquisition| acquisition.stage == Stage::Held), S::CrashedHolding);
                self.meet_if(self.any(client, |acquisition| acquisition.stage == Stage::Wanting), S::CrashedWaiting);
            }
            Event::Granted { op, .. } => {
                let owner = *self.ledger.acquisitions.get(op);
                let waiting = self.ledger.wanting.len() - usize::from(owner.stage == Stage::Wanting);
                let paused = |other: &u32| {
                    let other = self.ledger.acquisitions.get(*other);
                    other.client != owner.client && self.ledger.clients.get(other.client.into()).paused_until > line.at
                };
                self.meet_if(self.ledger.believing.iter().any(paused), S::GrantedWhilePaused);
                self.meet_if(self.ledger.changes > 0 && waiting >= 3, S::HandoverWithThreeWaiting);
                self.meet_if(owner.stage == Stage::Crashed, S::GrantedAfterCrash);
            }
            Event::Ended { op, cause: End::Lapsed, .. } => {
                let owner = *self.ledger.acquisitions.get(op);
                self.meet_if(self.others_wait(owner.client), S::LapsedWhileWaitedFor);
                self.meet_if(owner.stage == Stage::Releasing, S::LapsedWhileReleased);
            }
            Event::Wrote { op, accepted, .. } => {
                self.meet_if(!accepted, S::WriteFenced);
                self.meet_if(self.ledger.acquisitions.get(op).stage == Stage::Lost, S::WriteAfterLoss);
            }
            Event::Struck { slot, fault } => self.struck(plan, slot.site, slot.client, fault),
            Event::Sent { call, slot } => self.sent(call, slot.site, slot.client),
            Event::Applied { call } => self.applied(plan, call, line.at),
            Event::Answered { call } => {
                let memory = self.memory(client);
                if memory.renewal == Some(call) {
                    memory.renewals_unheard = 0;
                }
            }
            _ => {}
        }
    }

    fn struck(&mut self, plan: &Plan, site: Site, client: u8, fault: Fault) {
        use Sometimes as S;
        let waited_for = self.others_wait(client);
        match fault {
            Fault::EndSession => self.meet_if(waited_for, S::SessionEndedWhileWaitedFor),
            Fault::DeleteKey => self.meet_if(waited_for, S::KeyDeletedWhileWaitedFor),
            Fault::ReleaseByForce => self.meet_if(waited_for, S::ForcedWhileWaitedFor),
            Fault::Partition(millis) => self.meet_if(millis > plan.config.ttl_ms, S::LongPartition),
            Fault::Outage(_) => {
                self.meet_if(!self.ledger.believing.is_empty(), S::OutageWhileHeld);
                self.meet_if(!self.ledger.wanting.is_empty(), S::OutageWhileWaiting);
            }
            Fault::Repeat(_) => {
                self.meet_if(site == Site::Claim, S::ClaimRepeated);
                self.meet_if(site == Site::Release, S::ReleaseRepeated);
                self.meet_if(site == Site::Renew, S::RenewalRepeated);
            }
            Fault::Pause(_) => {
                self.meet_if(site == Site::Writing, S::PausedBeforeWriting);
                self.meet_if(site == Site::Acquiring, S::PausedWaiting);
            }
            Fault::Refuse => {
                let acquiring = self.ledger.wanting_of(client).is_some();
                self.memory(client).refusals += u32::from(acquiring);
            }
            _ => {}
        }
    }

    fn sent(&mut self, call: u32, site: Site, client: u8) {
        use Sometimes as S;
        let waiting = self.any(client, |acquisition| acquisition.stage == Stage::Wanting);
        let again = self.ledger.clients.get(client.into()).opens > 0;
        self.meet_if(site == Site::Open && waiting && again, S::SessionReplacedWhileWaiting);
        let applied_unheard = |earlier: Option<u32>| {
            earlier.map(|earlier| self.ledger.calls.get(earlier)).is_some_and(|earlier| earlier.applied && !earlier.answered)
        };
        let before = self.clients.get(usize::from(client)).copied().unwrap_or_default();
        let (claim_unheard, release_unheard) = (applied_unheard(before.claim), applied_unheard(before.release));
        let renewal_unheard = before.renewal.is_some_and(|renewal| !self.ledger.calls.get(renewal).answered);
        let memory = self.memory(client);
        match site {
            Site::Renew => {
                memory.renewals_unheard = if renewal_unheard { memory.renewals_unheard + 1 } else { 0 };
                memory.renewal = Some(call);
                let twice = memory.renewals_unheard >= 2;
                self.meet_if(twice, S::RenewalUnheardTwice);
            }
            Site::Claim => {
                memory.claim_unheard |= claim_unheard;
                memory.claim = Some(call);
            }
            Site::Release => {
                memory.release_unheard |= release_unheard;
                memory.release = Some(call);
                let after_loss = memory.owes_since_loss;
                self.meet_if(after_loss, S::ReleasedAfterLoss);
            }
            _ => {}
        }
        match self.latest.iter_mut().find(|(of, whose, _)| (*of, *whose) == (site, client)) {
            Some((.., latest)) => *latest = call,
            None => self.latest.push((site, client, call)),
        }
    }

    fn applied(&mut self, plan: &Plan, call: u32, at: u64) {
        use Sometimes as S;
        let sent = *self.ledger.calls.get(call);
        let Some(slot) = sent.slot else { return };
        let latest = self.latest.iter().find(|(of, whose, _)| (*of, *whose) == (slot.site, slot.client));
        self.meet_if(!sent.applied && latest.is_some_and(|(.., latest)| *latest != call), S::CallOvertaken);
        if slot.site != Site::Claim {
            return;
        }
        let over = sent.op.is_some_and(|op| self.ledger.acquisitions.get(op).stage.is_over());
        self.meet_if(over, S::ClaimAfterGivingUp);
        let delay = u64::from(plan.config.lock_delay_ms) * 1_000;
        let last = self.ledger.grants.last().and_then(|grant| grant.ended);
        let delayed = last.is_some_and(|(_, ended, cause)| cause != End::GivenBack && at < ended + delay);
        self.meet_if(delayed && self.ledger.live.is_empty(), S::DelayMet);
    }

    fn memory(&mut self, client: u8) -> &mut Memory {
        let client = usize::from(client);
        if client >= self.clients.len() {
            self.clients.resize(client + 1, Memory::default());
        }
        &mut self.clients[client]
    }

    fn any(&self, client: u8, is: impl Fn(&Acquisition) -> bool) -> bool {
        let acquisitions = self.ledger.wanting.iter().chain(&self.ledger.believing);
        acquisitions.map(|op| self.ledger.acquisitions.get(*op)).any(|acquisition| acquisition.client == client && is(acquisition))
    }

    fn others_wait(&self, client: u8) -> bool {
        self.ledger.wanting.iter().any(|op| self.ledger.acquisitions.get(*op).client != client)
    }

    fn meet_if(&mut self, so: bool, sometimes: Sometimes) {
        if so {
            self.met.meet(sometimes);
        }
    }
}
