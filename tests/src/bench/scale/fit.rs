//! A straight line through what was measured.

/// `y = at_none + slope x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) at_none: f64,
    pub(super) slope: f64,
}

impl Line {
    /// With the least squares of *relative* distance, as the points are powers of ten apart and each is
    /// as exact as its size; `None` of fewer than two different places or of a point that is not above 0.
    pub(super) fn through(points: &[(f64, f64)]) -> Option<Self> {
        if points.iter().any(|&(x, y)| x <= 0.0 || y <= 0.0) {
            return None;
        }
        let (mut w, mut wx, mut wy, mut wxx, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &(x, y) in points {
            let weight = 1.0 / (y * y);
            w += weight;
            wx += weight * x;
            wy += weight * y;
            wxx += weight * x * x;
            wxy += weight * x * y;
        }
        let spread = w * wxx - wx * wx;
        // Cancels to rounding errors where all points stand at one place.
        if spread <= 1e-9 * w * wxx {
            return None;
        }
        let slope = (w * wxy - wx * wy) / spread;
        Some(Self { at_none: (wy - slope * wx) / w, slope })
    }

    /// Where it has the height; infinite of a line that does not rise.
    pub(super) fn reaches(&self, height: f64) -> f64 {
        if self.slope > 0.0 { (height - self.at_none) / self.slope } else { f64::INFINITY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_a_place_is_none() {
        let line = Line::through(&[(1e6, 7e6), (1e7, 2.5e7), (5e7, 1.05e8)]).unwrap();
        assert!((line.at_none - 5e6).abs() < 1.0 && (line.slope - 2.0).abs() < 1e-6, "{line:?}");
        assert!((line.reaches(4.5e7) - 2e7).abs() < 1.0);
        assert_eq!(Line::through(&[(1e6, 7e6), (1e6, 8e6)]), None);
        assert_eq!(Line::through(&[(1e6, 7e6)]), None);
        assert_eq!(Line { at_none: 1.0, slope: 0.0 }.reaches(2.0), f64::INFINITY);
    }

    /// By an orthogonal decomposition in fractions, in Python.
    #[test]
    fn points_off_a_line_count_by_their_size() {
        let line = Line::through(&[(1e6, 8e6), (1e7, 2.4e7), (5e7, 1.1e8)]).unwrap();
        assert!((line.slope - 1.963_680_847).abs() < 1e-6, "{line:?}");
        assert!((line.at_none - 5_897_181.72).abs() < 1.0, "{line:?}");
    }
}
