//! From true time to a place on the picture.

/// Time is not drawn to scale: what happens together is spread out, and where nothing happens is cut short. Between two events lies the logarithm of
/// the time between them.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    /// Times with their places, both growing.
    points: Vec<(u64, f64)>,
}

impl Scale {
    /// A scale on which all of these times are told apart, from one place to another.
    pub(super) fn new(mut times: Vec<u64>, from: f64, to: f64) -> Self {
        times.sort_unstable();
        times.dedup();
        let mut width = 0.0;
        let mut points = Vec::with_capacity(times.len());
        for (n, at) in times.iter().enumerate() {
            if n > 0 {
                // In tenths of a millisecond, so that latencies are told from one another.
                width += (1.0 + (at - times[n - 1]) as f64 / 100.0).ln();
            }
            points.push((*at, width));
        }
        let stretch = if width > 0.0 { (to - from) / width } else { 0.0 };
        for (_, x) in &mut points {
            *x = from + *x * stretch;
        }
        Self { points }
    }

    /// Where a time stands; at the edge if it is beyond.
    pub(super) fn x(&self, at: u64) -> f64 {
        let after = self.points.partition_point(|(time, _)| *time < at);
        match (after.checked_sub(1).map(|before| self.points[before]), self.points.get(after).copied()) {
            (Some((from, left)), Some((to, right))) => left + (right - left) * (at - from) as f64 / (to - from) as f64,
            (Some((_, edge)), None) | (None, Some((_, edge))) => edge,
            (None, None) => 0.0,
        }
    }

    /// Times to write on the axis, at least so far apart.
    pub(super) fn ticks(&self, apart: f64) -> Vec<(u64, f64)> {
        let mut ticks: Vec<(u64, f64)> = Vec::new();
        for (at, x) in &self.points {
            if ticks.last().is_none_or(|(_, last)| x - last >= apart) {
                ticks.push((*at, *x));
            }
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_grow_with_time_and_idle_time_is_cut_short() {
        let scale = Scale::new(vec![1_000, 0, 1_000, 2_000, 1_000_000], 100.0, 1_100.0);
        let places: Vec<_> = [0, 500, 1_000, 2_000, 500_000, 1_000_000].into_iter().map(|at| scale.x(at)).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!((places[0], places[5]), (100.0, 1_100.0));
        // A second of nothing takes less than eight times the room of a millisecond.
        assert!((places[5] - places[3]) < 8.0 * (places[2] - places[0]), "{places:?}");
        assert_eq!((scale.x(5_000_000), Scale::new(Vec::new(), 0.0, 1.0).x(7)), (1_100.0, 0.0));
    }

    #[test]
    fn ticks_keep_their_distance() {
        let ticks = Scale::new((0..100).map(|n| n * 1_000).collect(), 0.0, 1_000.0).ticks(70.0);
        assert!(ticks.len() > 10);
        assert!(ticks.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 70.0));
    }
}
