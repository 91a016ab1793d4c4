//! What many measurements say together.

use std::time::Duration;

/// Measurements of one arm, kept by the round they were made in, so that arms can be compared round by round.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    rounds: Vec<Vec<f64>>,
}

/// Of sorted values: how many, and which stands where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many values there are.
    pub count: usize,
    /// One of ten is smaller.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// One of ten is larger.
    pub p90: f64,
    /// One of a hundred is larger.
    pub p99: f64,
}

impl Samples {
    /// Adds the measurements of one round; a round without any is kept too, so that rounds of arms stay side by side.
    pub fn add(&mut self, round: Vec<f64>) {
        self.rounds.push(round);
    }

    /// All measurements together; `None` without any.
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(self.rounds.iter().flatten().copied().collect())
    }

    /// How many times the other's median each round's median is; `None` where no round has both.
    ///
    /// What slows a whole machine for a while slows both in the same round, and falls out.
    pub fn ratio_to(&self, other: &Self) -> Option<Summary> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        let medians = pairs.filter_map(|(own, other)| Some((Summary::of(own.clone())?, Summary::of(other.clone())?)));
        Summary::of(medians.map(|(own, other)| own.p50 / other.p50).collect())
    }
}

impl Summary {
    /// Of values in any order; `None` without any.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| values[(last as f64 * share).round() as usize];
        Some(Self { count: values.len(), p10: at(0.10), p50: at(0.50), p90: at(0.90), p99: at(0.99) })
    }
}

/// A duration as measurements count it.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rounds: &[&[f64]]) -> Samples {
        let mut samples = Samples::default();
        for round in rounds {
            samples.add(round.to_vec());
        }
        samples
    }

    #[test]
    fn a_summary_goes_by_rank_whatever_the_order() {
        let summary = Summary::of((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!(summary, Summary { count: 101, p10: 10.0, p50: 50.0, p90: 90.0, p99: 99.0 });
        let one = Summary::of(vec![7.0]).unwrap();
        assert_eq!((one.p10, one.p99), (7.0, 7.0));
        assert_eq!(Summary::of(Vec::new()), None);
    }

    #[test]
    fn a_machine_that_slows_down_for_a_round_does_not_change_the_ratio() {
        let floor = samples(&[&[1.0, 1.0, 1.0], &[50.0, 50.0, 50.0], &[1.0, 1.0, 1.0]]);
        let ours = samples(&[&[2.0, 2.0, 2.0], &[100.0, 100.0, 100.0], &[2.0, 2.0, 2.0]]);
        let ratio = ours.ratio_to(&floor).unwrap();
        assert_eq!((ratio.p10, ratio.p50, ratio.p90), (2.0, 2.0, 2.0));
    }

    #[test]
    fn a_round_without_measurements_is_not_compared() {
        let ratio = samples(&[&[], &[3.0]]).ratio_to(&samples(&[&[1.0], &[1.0]])).unwrap();
        assert_eq!((ratio.count, ratio.p50), (1, 3.0));
        assert_eq!(samples(&[&[]]).ratio_to(&samples(&[&[1.0]])), None);
    }
}
