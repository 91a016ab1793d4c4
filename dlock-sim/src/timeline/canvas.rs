//! Shapes and words on the picture, written as SVG.

use std::fmt::Write as _;

pub(super) const INK: &str = "#0f172a";
pub(super) const GREY: &str = "#64748b";
pub(super) const PALE: &str = "#cbd5e1";
pub(super) const RED: &str = "#dc2626";
/// Of the clients, in turn.
pub(super) const COLOURS: [&str; 6] = ["#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777", "#0891b2"];

/// A picture in the making. Shapes lie under words, whenever they are drawn.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    width: f64,
    shapes: String,
    words: String,
    /// Where words stand already.
    taken: Vec<Area>,
}

#[derive(Clone, Copy, Debug)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    fn of(x: f64, y: f64, size: f64, text: &str) -> Self {
        Self { left: x - 1.0, right: x + width(text, size) + 1.0, top: y - size, bottom: y + 2.0 }
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stroke {
    Plain,
    Dashed,
    /// With a head at its end.
    Arrow,
    DashedArrow,
}

impl Canvas {
    pub(super) fn new(width: f64) -> Self {
        Self { width, ..Self::default() }
    }

    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, thick: f64, stroke: Stroke) {
        let dashes = if matches!(stroke, Stroke::Dashed | Stroke::DashedArrow) { " stroke-dasharray=\"5 4\"" } else { "" };
        let head = match stroke {
            Stroke::Arrow | Stroke::DashedArrow => format!(" marker-end=\"url(#{})\"", marker(colour)),
            Stroke::Plain | Stroke::Dashed => String::new(),
        };
        let _ = writeln!(
            self.shapes,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{thick}\"{dashes}{head}/>"
        );
    }

    pub(super) fn bar(&mut self, (left, right): (f64, f64), (top, bottom): (f64, f64), colour: &str, opacity: f64) {
        let (width, height) = ((right - left).max(2.0), bottom - top);
        let _ = writeln!(
            self.shapes,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\" fill=\"{colour}\" \
             fill-opacity=\"{opacity}\" stroke=\"{colour}\"/>"
        );
    }

    /// A stretch of time in which something is the matter.
    pub(super) fn hatch(&mut self, (left, right): (f64, f64), (top, bottom): (f64, f64), pattern: &str) {
        let (width, height) = ((right - left).max(2.0), bottom - top);
        let _ = writeln!(
            self.shapes,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"url(#{pattern})\"/>"
        );
    }

    pub(super) fn circle(&mut self, (x, y): (f64, f64), radius: f64, colour: &str, fill: &str) {
        let _ = writeln!(self.shapes, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{colour}\"/>");
    }

    pub(super) fn cross(&mut self, (x, y): (f64, f64), colour: &str) {
        for slope in [-1.0, 1.0] {
            self.line((x - 5.0, y - 5.0 * slope), (x + 5.0, y + 5.0 * slope), colour, 2.0, Stroke::Plain);
        }
    }

    pub(super) fn diamond(&mut self, (x, y): (f64, f64), colour: &str) {
        let _ = writeln!(self.shapes, "<path d=\"M{x:.1} {:.1}l6 6l-6 6l-6 -6z\" fill=\"#fff\" stroke=\"{colour}\"/>", y - 6.0);
    }

    /// Words exactly here.
    pub(super) fn text(&mut self, (x, y): (f64, f64), size: f64, colour: &str, bold: bool, text: &str) {
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        self.taken.push(Area::of(x, y, size, text));
        let _ = writeln!(
            self.words,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\"{weight}>{}</text>",
            escaped(text)
        );
    }

    /// Words at the first of these places where nothing else is written; nowhere if there is none. They never leave the picture.
    pub(super) fn label(&mut self, places: impl IntoIterator<Item = (f64, f64)>, colour: &str, text: &str) -> bool {
        const SIZE: f64 = 11.0;
        for (x, y) in places {
            let x = x.min(self.width - width(text, SIZE) - 8.0);
            let area = Area::of(x, y, SIZE, text);
            if self.taken.iter().any(|taken| taken.meets(&area)) {
                continue;
            }
            let (left, top) = (area.left, area.top);
            let (across, down) = (area.right - area.left, area.bottom - area.top);
            let _ = writeln!(
                self.words,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{across:.1}\" height=\"{down:.1}\" fill=\"#fff\" fill-opacity=\".8\"/>"
            );
            self.text((x, y), SIZE, colour, false, text);
            return true;
        }
        false
    }

    /// Keeps words away from here.
    pub(super) fn take(&mut self, (left, right): (f64, f64), (top, bottom): (f64, f64)) {
        self.taken.push(Area { left, right, top, bottom });
    }

    pub(super) fn finish(self, height: f64) -> String {
        let mut heads = String::new();
        for colour in COLOURS.iter().chain(&[RED, GREY, INK]) {
            let _ = write!(
                heads,
                "<marker id=\"{}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\">\
                 <path d=\"M0 0L8 4L0 8z\" fill=\"{colour}\"/></marker>",
                marker(colour)
            );
        }
        for (name, colour, turn) in [("pause", INK, 45), ("cut", RED, -45)] {
            let _ = write!(
                heads,
                "<pattern id=\"{name}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate({turn})\">\
                 <line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-opacity=\".45\"/></pattern>"
            );
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {height}\" width=\"{0}\" height=\"{height}\" \
             font-family=\"DejaVu Sans,Helvetica,Arial,sans-serif\">\n<defs>{heads}</defs>\n<rect width=\"{0}\" height=\"{height}\" \
             fill=\"#fff\"/>\n{1}{2}</svg>\n",
            self.width, self.shapes, self.words
        )
    }
}

/// How much room words take, by the widest of the fonts that may be at hand.
pub(super) fn width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.6
}

/// Breaks a text into lines of at most so many characters.
pub(super) fn lines(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if let Some(last) = lines.last_mut() {
            if last.is_empty() || last.chars().count() + word.chars().count() < most {
                if !last.is_empty() {
                    last.push(' ');
                }
                last.push_str(word);
                continue;
            }
            lines.push(word.to_owned());
        }
    }
    lines
}

fn marker(colour: &str) -> String {
    format!("head{}", colour.trim_start_matches('#'))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
