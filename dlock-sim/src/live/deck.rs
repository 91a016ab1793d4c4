//! Chance that leaves nothing out.

/// Deals cards in shuffled order: each once before any comes again.
pub(super) struct Deck<T> {
    cards: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    pub(super) fn of(cards: Vec<T>) -> Self {
        Self { cards, left: Vec::new() }
    }

    /// The next card; `None` only of an empty deck.
    pub(super) fn deal(&mut self, draws: &mut fastrand::Rng) -> Option<T> {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
            draws.shuffle(&mut self.left);
        }
        self.left.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_comes_once_before_any_comes_again() {
        let mut draws = fastrand::Rng::with_seed(1);
        let mut deck = Deck::of(vec![1, 2, 3, 4]);
        for _ in 0..3 {
            let mut round: Vec<i32> = (0..4).filter_map(|_| deck.deal(&mut draws)).collect();
            round.sort_unstable();
            assert_eq!(round, [1, 2, 3, 4]);
        }
    }
}
