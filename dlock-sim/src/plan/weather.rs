//! Where faults strike while a run goes on.

use std::collections::BTreeMap;

use super::{Fault, Faults, Plan, Site, Slot, Struck, hash};

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
