//! Pictures: bars against a line, and lines over axes of tens, of even steps or of factors.

use std::fmt::Write;

/// Bars, each with what it stands for.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What is shown.
    pub title: String,
    /// In which unit; under the bars.
    pub unit: String,
    /// Where the line is that bars are compared with.
    pub mark: f64,
    /// Names and values.
    pub values: Vec<(String, f64)>,
}

/// Lines.
#[derive(Clone, Debug)]
pub struct Lines {
    /// What is shown.
    pub title: String,
    /// What grows to the right.
    pub across: String,
    /// What grows upwards.
    pub upwards: String,
    /// Names and points.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// How numbers stand along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// They grow by tens, from one.
    Tens,
    /// They grow evenly, from zero.
    Even,
    /// Equal steps are equal factors, so that what is small stays apart beside what is large.
    Factors,
}

const WIDTH: f64 = 760.0;
const INK: &str = "#222";
const GRID: &str = "#ddd";
/// Told apart in grey and by people who do not see red from green, too.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8c6d1f"];

impl Bars {
    /// As the text of an SVG file.
    pub fn drawn(&self) -> String {
        const ROW: f64 = 26.0;
        const LEFT: f64 = 230.0;
        const TOP: f64 = 46.0;
        let bottom = TOP + ROW * self.values.len() as f64;
        let most = self.values.iter().map(|bar| bar.1).fold(self.mark, f64::max);
        let across = |value: f64| (WIDTH - LEFT - 70.0) * value / most;
        let mut svg = begun(bottom + 44.0, &self.title);
        for (row, (name, value)) in self.values.iter().enumerate() {
            let (top, colour) = (TOP + ROW * row as f64, if *value <= self.mark { COLOURS[6] } else { COLOURS[0] });
            text(&mut svg, LEFT - 8.0, top + 17.0, "end", name);
            _ = writeln!(
                svg,
                r#"<rect x="{LEFT}" y="{:.1}" width="{:.1}" height="18" fill="{colour}"/>"#,
                top + 4.0,
                across(*value)
            );
            text(&mut svg, LEFT + across(*value) + 6.0, top + 17.0, "start", &format!("{value:.2}"));
        }
        let mark = LEFT + across(self.mark);
        _ = writeln!(svg, r#"<path d="M{mark:.1} {TOP}V{bottom}" stroke="{INK}" stroke-dasharray="4 3"/>"#);
        text(&mut svg, LEFT, bottom + 26.0, "start", &self.unit);
        svg + "</svg>\n"
    }
}

impl Lines {
    /// As the text of an SVG file.
    pub fn drawn(&self) -> String {
        self.drawn_on(Axis::Tens, Axis::Even)
    }

    /// The same on other axes.
    pub fn drawn_on(&self, across: Axis, upwards: Axis) -> String {
        const LEFT: f64 = 70.0;
        const RIGHT: f64 = 480.0;
        const TOP: f64 = 64.0;
        const BOTTOM: f64 = 350.0;
        let points = || self.series.iter().flat_map(|line| &line.1);
        let columns = across.marks(points().map(|point| point.0));
        let rows = upwards.marks(points().map(|point| point.1));
        let x = |value: f64| LEFT + 14.0 + (RIGHT - LEFT - 28.0) * across.place(value, &columns);
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * upwards.place(value, &rows);
        let mut svg = begun(BOTTOM + 52.0, &self.title);
        for row in &rows {
            _ = writeln!(svg, r#"<path d="M{LEFT} {0:.1}H{RIGHT}" stroke="{GRID}"/>"#, y(*row));
            text(&mut svg, LEFT - 8.0, y(*row) + 4.0, "end", &trimmed(*row));
        }
        for column in &columns {
            text(&mut svg, x(*column), BOTTOM + 20.0, "middle", &trimmed(*column));
        }
        text(&mut svg, f64::midpoint(LEFT, RIGHT), BOTTOM + 42.0, "middle", &self.across);
        text(&mut svg, 16.0, TOP - 16.0, "start", &self.upwards);
        for (n, (name, points)) in self.series.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let path: Vec<_> = points.iter().map(|(across, up)| format!("{:.1},{:.1}", x(*across), y(*up))).collect();
            // What lies under another line shows through its gaps.
            let gaps = if n % 2 == 0 { "none" } else { "7 7" };
            let line = format!(r#"fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{gaps}""#);
            _ = writeln!(svg, r#"<polyline points="{}" {line}/>"#, path.join(" "));
            for (across, up) in points {
                _ = writeln!(svg, r#"<circle cx="{:.1}" cy="{:.1}" r="4" fill="{colour}"/>"#, x(*across), y(*up));
            }
            let row = TOP + 6.0 + 20.0 * n as f64;
            _ = writeln!(svg, r#"<rect x="{:.1}" y="{:.1}" width="12" height="12" fill="{colour}"/>"#, RIGHT + 20.0, row);
            text(&mut svg, RIGHT + 38.0, row + 11.0, "start", name);
        }
        svg + "</svg>\n"
    }
}

impl Axis {
    /// Round numbers from one that is not above the least to one that is not below the most.
    fn marks(self, values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
        let (least, most) = (values.clone().fold(f64::MAX, f64::min), values.fold(0.0, f64::max));
        match self {
            Self::Tens => (0..=most.max(10.0).log10().ceil() as i32).map(|decade| 10_f64.powi(decade)).collect(),
            Self::Factors if least > 0.0 && least <= most => {
                let decades = (least.log10().floor() as i32)..=(most.log10().ceil() as i32);
                let round: Vec<_> = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade))).collect();
                let below = round.iter().rposition(|value| *value <= least).unwrap_or(0);
                let above = round.iter().position(|value| *value >= most).unwrap_or(round.len() - 1);
                round[below..=above.max(below + 1)].to_vec()
            }
            Self::Even | Self::Factors => {
                let step = nice(most / 5.0);
                (0..=(most / step).ceil().max(1.0) as u32).map(|n| step * f64::from(n)).collect()
            }
        }
    }

    /// Where a number stands between the first mark, at 0, and the last, at 1.
    fn place(self, value: f64, marks: &[f64]) -> f64 {
        let (begin, end) = (marks[0], marks[marks.len() - 1]);
        match self {
            Self::Tens => value.max(1.0).log10() / end.log10(),
            Self::Factors if begin > 0.0 => (value / begin).ln() / (end / begin).ln(),
            Self::Even | Self::Factors => value / end,
        }
    }
}

fn begun(height: f64, title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    _ = writeln!(svg, r#"<text x="16" y="24" font-size="15" font-weight="bold" fill="{INK}">{}</text>"#, escaped(title));
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, told: &str) {
    _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{INK}">{}</text>"#, escaped(told));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('`', "")
}

/// The next greater of 1, 2 and 5 times a power of ten.
fn nice(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= least * 0.999).unwrap_or(least)
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_an_axis_are_round() {
        let steps = [0.3, 1.0, 34.0, 60.0, 0.0].map(|least| trimmed(nice(least)));
        assert_eq!(steps, ["0.5", "1", "50", "100", "1"]);
    }

    #[test]
    fn an_axis_goes_from_below_the_least_to_above_the_most() {
        let marks = |axis: Axis, values: &[f64]| axis.marks(values.iter().copied()).into_iter().map(trimmed).collect::<Vec<_>>();
        assert_eq!(marks(Axis::Tens, &[2_500.0]), ["1", "10", "100", "1000", "10000"]);
        assert_eq!(marks(Axis::Even, &[3.0, 16.0]), ["0", "5", "10", "15", "20"]);
        assert_eq!(marks(Axis::Factors, &[0.6, 7.0]), ["0.5", "1", "2", "5", "10"]);
        assert_eq!(marks(Axis::Factors, &[1.0]), ["1", "2"]);
        for axis in [Axis::Tens, Axis::Even, Axis::Factors] {
            let marks = axis.marks(std::iter::empty());
            assert_eq!((marks.len(), axis.place(marks[0], &marks), axis.place(marks[1], &marks)), (2, 0.0, 1.0), "{axis:?}");
        }
    }

    #[test]
    fn every_bar_and_line_is_named_and_nothing_breaks_the_markup() {
        let bars = Bars { title: "a < b".into(), unit: "times".into(), mark: 1.0, values: vec![("one & two".into(), 2.5)] }.drawn();
        assert!(bars.contains("a &lt; b") && bars.contains("one &amp; two") && bars.contains(">2.50<"), "{bars}");
        let line = ("etcd".to_owned(), vec![(1.0, 2.0), (100.0, 3.0)]);
        let lines = Lines { title: "t".into(), across: "waiters".into(), upwards: "ms".into(), series: vec![line] }.drawn();
        assert!(lines.contains(">etcd<") && lines.contains(">100<") && !lines.contains("NaN"), "{lines}");
        assert!(bars.ends_with("</svg>\n") && lines.ends_with("</svg>\n"));
    }
}
