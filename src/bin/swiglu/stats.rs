//! Medians and quartiles.

use serde::Serialize;

/// The middle of some numbers, and the quartiles around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lower: f64,
    pub(crate) upper: f64,
}

impl Spread {
    /// Of no numbers: not a number.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            median: quantile(&sorted, 0.5),
            lower: quantile(&sorted, 0.25),
            upper: quantile(&sorted, 0.75),
        }
    }

    /// Of the quotients of what was measured in the same round.
    pub(crate) fn of_ratios(numerators: &[f64], denominators: &[f64]) -> Self {
        let ratios: Vec<f64> = numerators.iter().zip(denominators).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// Between two neighbours in proportion.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = at * last as f64;
    let (index, part) = (position as usize, position.fract());
    let next = sorted[(index + 1).min(last)];
    sorted[index] + part * (next - sorted[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_neighbours() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0, 5.0]);
        assert_eq!(spread, Spread { median: 3.0, lower: 2.0, upper: 4.0 });
        let spread = Spread::of(&[2.0, 1.0]);
        assert_eq!(spread, Spread { median: 1.5, lower: 1.25, upper: 1.75 });
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, lower: 7.0, upper: 7.0 });
    }

    #[test]
    fn of_nothing_there_is_no_median() {
        assert!(Spread::of(&[]).median.is_nan() && Spread::of(&[]).lower.is_nan(), "a number of nothing");
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let spread = Spread::of_ratios(&[2.0, 20.0, 30.0], &[1.0, 10.0, 10.0]);
        assert_eq!(spread.median, 2.0);
    }
}
