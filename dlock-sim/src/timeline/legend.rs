//! What each mark on the picture means.

use super::canvas::{COLOURS, Canvas, GREY, INK, RED, Stroke, width};
use super::{HALF, WIDTH};

type Mark = (&'static str, fn(&mut Canvas, f64, f64));

const MARKS: [Mark; 12] = [
    ("granted by the store", |canvas, x, y| canvas.bar((x, x + 30.0), (y - 8.0, y + 8.0), COLOURS[0], 0.2)),
    ("client was told that it holds", |canvas, x, y| canvas.bar((x, x + 30.0), (y - 8.0, y + 8.0), COLOURS[0], 0.85)),
    ("waits", |canvas, x, y| canvas.line((x, y), (x + 30.0, y), COLOURS[0], 3.0, Stroke::Dashed)),
    ("gives back", |canvas, x, y| canvas.bar((x, x + 30.0), (y - 3.0, y + 3.0), COLOURS[0], 0.35)),
    ("call, from sending to taking effect", |canvas, x, y| {
        canvas.line((x, y + HALF - 3.0), (x + 28.0, y - HALF + 3.0), COLOURS[0], 1.4, Stroke::Arrow);
    }),
    ("answer", |canvas, x, y| canvas.line((x, y - HALF + 3.0), (x + 28.0, y + HALF - 3.0), GREY, 1.0, Stroke::Arrow)),
    ("late or repeated by a fault", |canvas, x, y| {
        canvas.line((x, y + HALF - 3.0), (x + 28.0, y - HALF + 3.0), RED, 1.4, Stroke::DashedArrow);
    }),
    ("lost on the way", |canvas, x, y| {
        canvas.line((x, y + 7.0), (x + 22.0, y - 4.0), RED, 1.4, Stroke::Dashed);
        canvas.cross((x + 22.0, y - 4.0), RED);
    }),
    ("paused", |canvas, x, y| canvas.hatch((x, x + 30.0), (y - 8.0, y + 8.0), "pause")),
    ("cut off", |canvas, x, y| canvas.hatch((x, x + 30.0), (y - 8.0, y + 8.0), "cut")),
    ("write with its token; red: refused or too late", |canvas, x, y| canvas.circle((x + 15.0, y), 8.0, COLOURS[0], "#fff")),
    ("believes falsely", |canvas, x, y| canvas.diamond((x + 15.0, y), RED)),
];

/// Draws the legend from there down; says where it ends.
pub(super) fn draw(canvas: &mut Canvas, top: f64) -> f64 {
    const SIZE: f64 = 11.0;
    let (mut x, mut y) = (20.0, top + 22.0);
    for (says, mark) in MARKS {
        let wide = 38.0 + width(says, SIZE) + 22.0;
        if x + wide > WIDTH {
            (x, y) = (20.0, y + 26.0);
        }
        mark(canvas, x, y);
        canvas.text((x + 38.0, y + 4.0), SIZE, INK, false, says);
        x += wide;
    }
    let note = "Numbers in brackets are acquisitions. Time is not to scale: busy stretches are widened, idle ones cut; every tick says its time.";
    canvas.text((20.0, y + 28.0), SIZE, GREY, false, note);
    y + 44.0
}
